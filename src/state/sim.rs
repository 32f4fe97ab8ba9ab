//! Simulated disk in memory with injected power losses, I/O errors and a full disk, for tests of the engine.

use std::io::{Error, ErrorKind};
use std::sync::Arc;

use parking_lot::Mutex;
use proptest::prelude::ProptestConfig;
use redb::{Database, StorageBackend};

use super::engine::{self, CURRENT, Opener};
use super::seal::Sealer;

/// Handle to a simulated disk.
#[derive(Debug, Clone)]
pub(crate) struct SimDisk {
    disk: Arc<Mutex<Sim>>,
    /// Incremented by each power loss, which invalidates older handles.
    generation: u64,
}

#[derive(Default)]
struct Sim {
    /// Content that is durable: it survives a power loss.
    durable: Vec<u8>,
    /// Content that reads return.
    view: Vec<u8>,
    /// Writes since the last sync.
    pending: Vec<Write>,
    generation: u64,
    /// Number of writes and syncs so far.
    steps: u64,
    /// Step at which power is lost.
    power_ends: Option<u64>,
    /// Step that fails, and its error.
    fails: Option<(u64, ErrorKind)>,
    /// Every step fails.
    is_broken: bool,
    capacity: Option<u64>,
}

impl std::fmt::Debug for Sim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sim")
    }
}

#[derive(Clone)]
enum Write {
    Data(u64, Vec<u8>),
    Length(u64),
}

impl Write {
    fn apply(&self, to: &mut Vec<u8>) {
        match self {
            Self::Data(offset, data) => {
                let offset = usize::try_from(*offset).unwrap();
                let end = offset + data.len();
                if to.len() < end {
                    to.resize(end, 0);
                }
                to[offset..end].copy_from_slice(data);
            }
            Self::Length(len) => to.resize(usize::try_from(*len).unwrap(), 0),
        }
    }
}

/// Deterministic pseudo-random numbers from a seed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, end: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % end
    }
}

/// Number of cases of a property test: `PROPTEST_CASES`, or a number that suits a default test run.
pub(crate) fn cases(by_default: u32) -> ProptestConfig {
    let told = std::env::var("PROPTEST_CASES").ok();
    let cases = told.map_or(by_default, |text| text.parse().expect("a number of cases"));
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

impl SimDisk {
    /// Creates a disk with an empty state.
    pub(super) fn new(sealer: &Sealer) -> Self {
        let disk = Self {
            disk: Arc::default(),
            generation: 0,
        };
        let database = disk.open().unwrap();
        engine::initialize(&database, sealer, CURRENT).unwrap();
        drop(database);
        disk
    }

    /// Creates an independent disk with the same content and no pending writes.
    pub fn fork(&self) -> Self {
        let disk = self.disk.lock();
        let copy = Sim {
            durable: disk.view.clone(),
            view: disk.view.clone(),
            ..Sim::default()
        };
        Self {
            disk: Arc::new(Mutex::new(copy)),
            generation: 0,
        }
    }

    /// Number of writes and syncs so far.
    pub fn steps(&self) -> u64 {
        self.disk.lock().steps
    }

    /// Schedules a power loss after this many more steps.
    pub fn lose_power_after(&self, steps: u64) {
        let mut disk = self.disk.lock();
        disk.power_ends = Some(disk.steps + steps);
    }

    /// Schedules one I/O error after this many more steps.
    pub fn fail_after(&self, steps: u64, kind: ErrorKind) {
        let mut disk = self.disk.lock();
        disk.fails = Some((disk.steps + steps, kind));
    }

    /// Lets every write and sync fail until [`heal`](Self::heal).
    pub fn fail_from_now_on(&self) {
        self.disk.lock().is_broken = true;
    }

    /// Removes the injected faults.
    pub fn heal(&self) {
        let mut disk = self.disk.lock();
        disk.fails = None;
        disk.is_broken = false;
    }

    /// Limits the size of the file in bytes.
    pub fn limit(&self, capacity: Option<u64>) {
        self.disk.lock().capacity = capacity;
    }

    pub fn len(&self) -> u64 {
        self.disk.lock().view.len() as u64
    }

    pub fn has_lost_power(&self) -> bool {
        let disk = self.disk.lock();
        disk.power_ends.is_some_and(|end| disk.steps >= end)
    }

    /// Returns the disk after a power loss and a restart: the dice choose for each unsynced write whether it was
    /// lost, torn or kept.
    pub fn restart(&self, dice: &mut Dice) -> Self {
        let mut disk = self.disk.lock();
        let mut content = std::mem::take(&mut disk.durable);
        for write in std::mem::take(&mut disk.pending) {
            match (dice.below(3), write) {
                (0, _) => {}
                (1, Write::Data(offset, mut data)) => {
                    let kept = dice.below(data.len() as u64 + 1);
                    data.truncate(usize::try_from(kept).unwrap());
                    Write::Data(offset, data).apply(&mut content);
                }
                (_, write) => write.apply(&mut content),
            }
        }
        disk.view = content.clone();
        disk.durable = content;
        disk.generation += 1;
        disk.power_ends = None;
        disk.fails = None;
        Self {
            disk: Arc::clone(&self.disk),
            generation: disk.generation,
        }
    }

    fn step(&self, writes: Option<Write>) -> std::io::Result<()> {
        let mut disk = self.disk.lock();
        if disk.generation != self.generation {
            return Err(Error::other("this handle is of before the restart"));
        }
        let step = disk.steps;
        if disk.power_ends.is_some_and(|end| step >= end) {
            // The write in flight at the power loss may be durable or not.
            if disk.power_ends == Some(step) {
                disk.pending.extend(writes);
                disk.steps += 1;
            }
            return Err(Error::other("no power"));
        }
        disk.steps += 1;
        if disk.is_broken {
            return Err(Error::other("broken"));
        }
        if let Some((at, kind)) = disk.fails
            && at == step
        {
            // A failed write has written half of its data.
            if let Some(Write::Data(offset, mut data)) = writes {
                data.truncate(data.len() / 2);
                let half = Write::Data(offset, data);
                half.apply(&mut disk.view);
                disk.pending.push(half);
            }
            return Err(kind.into());
        }
        match writes {
            Some(write) => {
                write.apply(&mut disk.view);
                disk.pending.push(write);
            }
            None => {
                disk.durable = disk.view.clone();
                disk.pending.clear();
            }
        }
        Ok(())
    }
}

impl Opener for SimDisk {
    fn open(&self) -> Result<Database, redb::Error> {
        Ok(engine::builder().create_with_backend(self.clone())?)
    }
}

impl StorageBackend for SimDisk {
    fn len(&self) -> std::io::Result<u64> {
        Ok(SimDisk::len(self))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        let disk = self.disk.lock();
        if disk.generation != self.generation {
            return Err(Error::other("this handle is of before the restart"));
        }
        let start = usize::try_from(offset).unwrap();
        let part = disk.view.get(start..start + out.len());
        out.copy_from_slice(part.ok_or(ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        let capacity = self.disk.lock().capacity;
        if capacity.is_some_and(|capacity| len > capacity) {
            return Err(ErrorKind::StorageFull.into());
        }
        self.step(Some(Write::Length(len)))
    }

    fn sync_data(&self) -> std::io::Result<()> {
        self.step(None)
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.step(Some(Write::Data(offset, data.to_vec())))
    }
}
