//! Guest memory: a memfd that the device maps and the test accesses by read and write.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, memfd_create};

use super::link::{Link, command};

/// Page size.
pub const PAGE: u64 = 4096;

/// Guest address at which memory begins.
pub const BASE: u64 = 0x4000_0000;

/// Size of memory.
pub const SIZE: u64 = 4 << 20;

/// DMA_MAP flag: the device may read.
pub const READ: u32 = 1;

/// DMA_MAP flag: the device may write.
pub const WRITE: u32 = 2;

/// A memfd at a guest address.
pub struct Memory {
    /// The file; tests may truncate it.
    pub file: File,
    /// Guest address of its first byte.
    pub base: u64,
}

impl Memory {
    /// Creates zeroed memory of `size` bytes.
    pub fn new(base: u64, size: u64) -> Self {
        let fd = memfd_create("guest", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING);
        let file = File::from(fd.expect("a memfd"));
        file.set_len(size).expect("memory");
        Self { file, base }
    }

    /// Maps `size` bytes from `offset` on the device; returns the reply's errno.
    pub fn map(&self, link: &mut Link, offset: u64, size: u64, flags: u32) -> io::Result<u32> {
        map_at(link, self.base + offset, size, offset, flags, &self.file)
    }

    /// Unmaps a range; returns the reply's errno.
    pub fn unmap(&self, link: &mut Link, offset: u64, size: u64) -> io::Result<u32> {
        let mut body = [24_u32, 0]
            .into_iter()
            .flat_map(u32::to_le_bytes)
            .collect::<Vec<u8>>();
        body.extend((self.base + offset).to_le_bytes());
        body.extend(size.to_le_bytes());
        Ok(link.ask(command::DMA_UNMAP, &body, &[])?.errno)
    }

    /// Writes at a guest address.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        let at = address - self.base;
        self.file.write_all_at(bytes, at).expect("memory");
    }

    /// Reads at a guest address.
    pub fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let at = address - self.base;
        self.file.read_exact_at(&mut bytes, at).expect("memory");
        bytes
    }
}

/// Maps any range of any file on the device; returns the reply's errno.
pub fn map_at(
    link: &mut Link,
    address: u64,
    size: u64,
    offset: u64,
    flags: u32,
    file: &impl AsFd,
) -> io::Result<u32> {
    let mut body = [32, flags]
        .into_iter()
        .flat_map(u32::to_le_bytes)
        .collect::<Vec<u8>>();
    for word in [offset, address, size] {
        body.extend(word.to_le_bytes());
    }
    Ok(link.ask(command::DMA_MAP, &body, &[file.as_fd()])?.errno)
}
