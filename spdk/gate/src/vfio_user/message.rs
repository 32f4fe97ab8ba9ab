//! Validates client messages: size and descriptors by command.

/// The most descriptors in one message, one per interrupt: the kernel's limit (SCM_MAX_FD).
pub const FDS_MAX: u64 = 253;

const VERSION: u16 = 1;
const DMA_MAP: u16 = 2;
const DMA_UNMAP: u16 = 3;
const GET_INFO: u16 = 4;
const GET_REGION_INFO: u16 = 5;
const GET_REGION_IO_FDS: u16 = 6;
const GET_IRQ_INFO: u16 = 7;
const SET_IRQS: u16 = 8;
const REGION_READ: u16 = 9;
const REGION_WRITE: u16 = 10;
const RESET: u16 = 13;
const FEATURE: u16 = 16;
const MIGRATION_READ: u16 = 17;
const MIGRATION_WRITE: u16 = 18;

/// Returns whether a message is acceptable for its command: at least the command's structure in the `body` bytes
/// behind the header, and no descriptors unless the command takes some.
pub fn is_message_right(command: u16, body: u64, fds: u64) -> bool {
    let least = match command {
        VERSION => 4,
        DMA_MAP => 32,
        DMA_UNMAP => 24,
        GET_INFO | GET_REGION_IO_FDS | GET_IRQ_INFO => 16,
        GET_REGION_INFO => 32,
        SET_IRQS => 20,
        REGION_READ | REGION_WRITE => 16,
        RESET => 0,
        FEATURE | MIGRATION_READ | MIGRATION_WRITE => 8,
        _ => return false,
    };
    let most = match command {
        DMA_MAP => 1,
        SET_IRQS => FDS_MAX,
        _ => 0,
    };
    body >= least && fds <= most
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_has_its_least_and_its_descriptors() {
        let known = [
            (VERSION, 4, 0),
            (DMA_MAP, 32, 1),
            (DMA_UNMAP, 24, 0),
            (GET_INFO, 16, 0),
            (GET_REGION_INFO, 32, 0),
            (GET_REGION_IO_FDS, 16, 0),
            (GET_IRQ_INFO, 16, 0),
            (SET_IRQS, 20, FDS_MAX),
            (REGION_READ, 16, 0),
            (REGION_WRITE, 16, 0),
            (RESET, 0, 0),
            (FEATURE, 8, 0),
            (MIGRATION_READ, 8, 0),
            (MIGRATION_WRITE, 8, 0),
        ];
        for command in 0..=u16::MAX {
            let Some((_, least, most)) = known.iter().find(|(known, ..)| *known == command) else {
                assert!(!is_message_right(command, 1 << 20, 0), "{command}");
                continue;
            };
            assert!(is_message_right(command, *least, *most), "{command}");
            assert!(is_message_right(command, u64::MAX, 0), "{command}");
            assert!(!is_message_right(command, *least, *most + 1), "{command}");
            if *least > 0 {
                assert!(!is_message_right(command, *least - 1, 0), "{command}");
            }
        }
    }
}
