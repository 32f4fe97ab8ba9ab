//! Guest memory without a running virtual machine: memfds of ordinary or 2 MiB pages.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vm_memory::{AtomicAccess, Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use super::message::{Message, request};

/// Front-end virtual address of guest address 0.
pub const USER_BASE: u64 = 0x7000_0000_0000;

/// Page size of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// 4 KiB pages.
    Ordinary,
    /// 2 MiB pages.
    Huge,
}

/// One region of the memory table.
#[derive(Clone, Debug)]
pub struct Region {
    /// Guest address.
    pub guest: u64,
    /// Size, bytes.
    pub size: u64,
    /// Front-end virtual address.
    pub user: u64,
    /// Offset in the file.
    pub offset: u64,
    /// The backing file.
    pub file: Arc<File>,
}

impl Region {
    /// Returns the region's entry in the memory table.
    pub fn words(&self) -> [u64; 4] {
        [self.guest, self.size, self.user, self.offset]
    }
}

/// Guest memory with a bump allocator.
pub struct Guest {
    memory: GuestMemoryMmap,
    /// The regions by ascending address.
    pub regions: Vec<Region>,
    next: u64,
}

impl Guest {
    /// One region of `size` bytes at guest address 0.
    pub fn new(pages: Pages, size: u64) -> Self {
        Self::with_regions(vec![Region {
            guest: 0,
            size,
            user: USER_BASE,
            offset: 0,
            file: memory_file(pages, size),
        }])
    }

    /// These regions; their files must be large enough.
    pub fn with_regions(regions: Vec<Region>) -> Self {
        let ranges = regions.iter().map(|region| {
            let file = region.file.try_clone().expect("a file descriptor is left");
            let size = usize::try_from(region.size).expect("64 bits");
            let file = FileOffset::new(file, region.offset);
            (GuestAddress(region.guest), size, Some(file))
        });
        let memory = GuestMemoryMmap::<()>::from_ranges_with_files(ranges);
        Self {
            memory: memory.expect("guest memory can be mapped"),
            next: regions[0].guest,
            regions,
        }
    }

    /// Allocates guest memory.
    pub fn allocate(&mut self, size: u64, align: u64) -> u64 {
        let at = self.next.next_multiple_of(align);
        self.next = at + size;
        assert!(self.next <= self.end(), "guest memory is full");
        at
    }

    /// Returns the allocator's position, for [`release`](Self::release).
    pub fn mark(&self) -> u64 {
        self.next
    }

    /// Frees everything allocated since `mark`.
    pub fn release(&mut self, mark: u64) {
        self.next = mark;
    }

    /// Returns the end of the last region.
    pub fn end(&self) -> u64 {
        let ends = self.regions.iter().map(|region| region.guest + region.size);
        ends.max().expect("a region")
    }

    /// Writes bytes.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(at))
            .expect("guest memory");
    }

    /// Reads bytes.
    pub fn read(&self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory
            .read_slice(&mut bytes, GuestAddress(at))
            .expect("guest memory");
        bytes
    }

    /// Stores a number atomically, sequentially consistent: after all previous writes.
    pub fn store<T: AtomicAccess>(&self, at: u64, value: T) {
        let stored = self.memory.store(value, GuestAddress(at), Ordering::SeqCst);
        stored.expect("guest memory");
    }

    /// Loads a number atomically, sequentially consistent: before all later reads.
    pub fn load<T: AtomicAccess>(&self, at: u64) -> T {
        let loaded = self.memory.load(GuestAddress(at), Ordering::SeqCst);
        loaded.expect("guest memory")
    }

    /// Translates a guest address to the front-end's virtual address.
    pub fn user(&self, at: u64) -> u64 {
        let holds = |region: &&Region| (region.guest..=region.guest + region.size).contains(&at);
        let region = self.regions.iter().find(holds).expect("guest memory");
        region.user.wrapping_add(at - region.guest)
    }

    /// Builds SET_MEM_TABLE with all regions.
    pub fn table(&self) -> Message {
        table(&self.regions)
    }
}

/// Builds SET_MEM_TABLE with these regions.
pub fn table(regions: &[Region]) -> Message {
    let count = u32::try_from(regions.len()).expect("few regions");
    let begin = Message::new(request::SET_MEM_TABLE).u32s([count, 0]);
    regions.iter().fold(begin, |message, region| {
        message.u64s(region.words()).fd(region.file.as_fd())
    })
}

/// Creates a memfd of `size` bytes.
pub fn memory_file(pages: Pages, size: u64) -> Arc<File> {
    let flags = match pages {
        Pages::Ordinary => MemfdFlags::CLOEXEC,
        Pages::Huge => MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
    };
    let file = memfd_create("guest", flags).expect("a file in memory");
    ftruncate(&file, size).expect("a file can grow");
    Arc::new(File::from(file))
}
