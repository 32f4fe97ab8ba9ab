//! How targets share the machine: two small ones at a time, or one alone.

use std::fs::{File, TryLockError};
use std::process::Command;
use std::sync::LazyLock;
use std::time::Duration;

/// Number of small targets at a time.
const SLOTS: u32 = 2;

/// Time between two looks for a free slot.
const LOOK: Duration = Duration::from_millis(20);

/// What a target has of the machine, until this is dropped.
pub struct Machine {
    /// Whether another target uses the same core at the same time.
    pub is_shared: bool,
    _slots: Vec<File>,
}

/// Whether this process may make a mount namespace.
static CAN_BE_SHARED: LazyLock<bool> = LazyLock::new(|| {
    let made = Machine::apart("true").output();
    made.is_ok_and(|made| made.status.success())
});

impl Machine {
    /// Whether targets can use one core: SPDK's locks of cores have to be hidden.
    pub fn can_be_shared() -> bool {
        *CAN_BE_SHARED
    }

    /// A program with a /var/tmp of its own, where SPDK's locks of cores are. It sees later mounts of others only where
    /// mounts are shared with them.
    pub fn apart(program: &str) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "slave", "sh", "-c"]);
        command.args([r#"mount -t tmpfs none /var/tmp && exec "$0" "$@""#, program]);
        command
    }

    /// Waits until no other target runs.
    pub fn alone() -> Self {
        let lock = |slot| {
            let (file, path) = open(slot);
            file.lock().unwrap_or_else(|e| panic!("{path}: {e}"));
            file
        };
        Self {
            is_shared: false,
            // In this order everywhere.
            _slots: (0..SLOTS).map(lock).collect(),
        }
    }

    /// Waits for a slot.
    pub fn shared() -> Self {
        let slots: Vec<_> = (0..SLOTS).map(open).collect();
        loop {
            for (file, path) in &slots {
                match file.try_lock() {
                    Ok(()) => {
                        let file = file.try_clone().expect("there are descriptors");
                        return Self {
                            is_shared: true,
                            _slots: vec![file],
                        };
                    }
                    Err(TryLockError::WouldBlock) => {}
                    Err(TryLockError::Error(e)) => panic!("{path}: {e}"),
                }
            }
            std::thread::sleep(LOOK);
        }
    }
}

fn open(slot: u32) -> (File, String) {
    let path = std::env::temp_dir().join(format!("opi-spdk-tests-{slot}.lock"));
    let path = path.display().to_string();
    let file = File::create(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    (file, path)
}
