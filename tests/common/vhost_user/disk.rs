//! Disks over sessions: valid requests and their data.

use std::io;
use std::path::Path;

use super::queue::Descriptor;
use super::scsi::{Command, RESPONSE};
use super::session::{Options, Session};

/// Bytes per sector.
pub const SECTOR: usize = 512;

const READ: u32 = 0;
const WRITE: u32 = 1;
const READ_10: u8 = 0x28;
const WRITE_10: u8 = 0x2a;

/// The type of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// virtio-blk.
    Blk,
    /// virtio-scsi, with a disk at target 0.
    Scsi,
}

impl Kind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Blk, Self::Scsi];

    /// Returns the index of the first request queue.
    pub fn queue(self) -> usize {
        match self {
            Self::Blk => 0,
            Self::Scsi => 2,
        }
    }

    /// Returns session options with just enough queues for one request queue.
    pub fn options(self) -> Options {
        Options::default().queues(self.queue() as u32 + 1)
    }
}

/// A disk.
pub struct Disk {
    /// The session.
    pub session: Session,
    /// The type of device.
    pub kind: Kind,
}

impl Disk {
    /// Connects to a device as a driver does.
    pub fn open(kind: Kind, socket: &Path) -> io::Result<Self> {
        Self::open_with(kind, socket, &kind.options())
    }

    /// Connects with these session options.
    pub fn open_with(kind: Kind, socket: &Path, options: &Options) -> io::Result<Self> {
        let session = Session::start(socket, options)?;
        Ok(Self { session, kind })
    }

    /// Reads from a sector on.
    pub fn read(&mut self, sector: u32, length: usize) -> io::Result<Vec<u8>> {
        let queue = self.kind.queue();
        let (request, status) = self.request(false, sector, length);
        let (sizes, data) = match self.kind {
            Kind::Blk => ([length, status], 0),
            Kind::Scsi => ([status, length], 1),
        };
        let mut transfer = self.session.transfer(queue, &[&request], &sizes)?;
        self.check(&transfer.parts[1 - data])?;
        Ok(transfer.parts.swap_remove(data))
    }

    /// Writes from a sector on.
    pub fn write(&mut self, sector: u32, data: &[u8]) -> io::Result<()> {
        let queue = self.kind.queue();
        let (request, status) = self.request(true, sector, data.len());
        let transfer = self.session.transfer(queue, &[&request, data], &[status])?;
        self.check(&transfer.parts[0])
    }

    /// Writes a pattern derived from `seed`, reads it back and compares.
    pub fn verify(&mut self, sector: u32, length: usize, seed: u64) -> io::Result<()> {
        let wanted = pattern(seed, length);
        self.write(sector, &wanted)?;
        let found = self.read(sector, length)?;
        if found == wanted {
            return Ok(());
        }
        let at = found.iter().zip(&wanted).position(|(a, b)| a != b);
        Err(io::Error::other(format!(
            "sector {sector} differs at byte {at:?}"
        )))
    }

    /// Submits a read without waiting for it.
    pub fn begin_read(&mut self, sector: u32, length: usize) {
        let queue = self.kind.queue();
        let (request, status) = self.request(false, sector, length);
        let sizes = match self.kind {
            Kind::Blk => [length, status],
            Kind::Scsi => [status, length],
        };
        let (chain, _) = self.session.place(&[&request], &sizes);
        self.session.queues[queue].submit(&self.session.guest, &chain);
    }

    /// Submits reads of `total` bytes without waiting for them. On a rate-limited volume they stay in
    /// flight.
    pub fn begin_reads(&mut self, total: usize) {
        // Within the SCSI limit of 512 KiB and the segment limit of blk disks.
        const EACH: usize = 256 << 10;
        for _ in 0..total / EACH {
            self.begin_read(0, EACH);
        }
    }

    /// Returns a request's header and the length of its status.
    fn request(&self, writes: bool, sector: u32, length: usize) -> (Vec<u8>, usize) {
        match self.kind {
            Kind::Blk => (
                blk_header(if writes { WRITE } else { READ }, sector.into()),
                1,
            ),
            Kind::Scsi => {
                let operation = if writes { WRITE_10 } else { READ_10 };
                let count = u16::try_from(length / SECTOR).expect("few sectors");
                (
                    Command::transfer(operation, sector, count).encode(),
                    RESPONSE,
                )
            }
        }
    }

    /// Fails unless the status is that of success.
    fn check(&self, status: &[u8]) -> io::Result<()> {
        let good = match self.kind {
            Kind::Blk => status == [0],
            // The SCSI status and the virtio-scsi response code.
            Kind::Scsi => status[10] == 0 && status[11] == 0,
        };
        if good {
            return Ok(());
        }
        let end = status.len().min(16);
        Err(io::Error::other(format!(
            "{:?} answers {:?}",
            self.kind,
            &status[..end]
        )))
    }

    /// Submits an arbitrary descriptor chain to the request queue.
    pub fn submit(&mut self, chain: &[Descriptor]) -> u16 {
        let queue = self.kind.queue();
        self.session.queues[queue].submit(&self.session.guest, chain)
    }
}

/// The header of a virtio-blk request.
pub fn blk_header(operation: u32, sector: u64) -> Vec<u8> {
    let mut header = operation.to_le_bytes().to_vec();
    header.extend([0; 4]);
    header.extend(sector.to_le_bytes());
    header
}

/// Returns bytes that differ for different seeds.
fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let word = |n: u64| {
        (n ^ (seed << 32))
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .to_le_bytes()
    };
    (0..length as u64 / 8).flat_map(word).collect()
}
