//! Mapped files of a client: guest memory, the dirty log, the inflight area.
//!
//! Ownership: only control threads map and unmap. A request in flight keeps the memory that it points to through a
//! [`View`], and the control thread keeps that memory until it holds the last reference.

use std::ffi::c_void;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use spdk_gate::vhost_user::chain::{Descriptor, Guest};
use spdk_gate::vhost_user::memory::{MAX_REGIONS, Mapped, Table, Window, by_guest, to_guest};
use spdk_gate::vhost_user::room::Room;
use spdk_sys as sys;

use super::room::{self, Taken};
use crate::error::Error;
use crate::sigbus::{self, Lost, Watch};

/// Granularity of SPDK's DMA translations, in bytes.
const DMA_PAGE: u64 = 2 << 20;

const HUGETLBFS_MAGIC: libc::__fsword_t = 0x958_458f6;

const OPERATION: &str = "map memory of a vhost-user client";

/// A mapped part of a client's file.
pub(super) struct Map {
    base: usize,
    length: usize,
    lead: usize,
    size: usize,
    page: u64,
    watch: Option<Watch>,
    _taken: Taken,
}

impl Map {
    /// Maps `size` bytes at `offset` of a file. `lost` is signalled when the file is truncated. ENOMEM if there is no
    /// room for the mapping.
    pub(super) fn new(
        file: &OwnedFd,
        offset: u64,
        size: u64,
        lost: &Arc<Lost>,
        room: &Arc<Room>,
    ) -> Result<Self, Error> {
        let fail = |error: std::io::Error| {
            Error::new(OPERATION, error.raw_os_error().unwrap_or(libc::EIO))
        };
        let file = File::from(file.as_fd().try_clone_to_owned().map_err(fail)?);
        let about = file.metadata().map_err(fail)?;
        if !about.is_file() {
            return Err(Error::new(OPERATION, libc::EINVAL)
                .with_detail("memory must be a regular file, such as memfd or hugetlbfs makes"));
        }
        let page = page_size(&file)?;
        let window = Window::new(offset, size, about.len(), page)
            .map_err(|fault| Error::new(OPERATION, libc::EINVAL).with_detail(fault.to_string()))?;
        let taken = Taken::new(room, window.length)
            .map_err(|fault| Error::new(OPERATION, libc::ENOMEM).with_detail(fault.to_string()))?;
        let too_large = |_| Error::new(OPERATION, libc::EOVERFLOW);
        let length = usize::try_from(window.length).map_err(too_large)?;
        let lead = usize::try_from(window.lead).map_err(too_large)?;
        let size = usize::try_from(size).map_err(too_large)?;
        let at = libc::off_t::try_from(window.offset).map_err(too_large)?;
        // SAFETY: creates a new mapping at an address chosen by the kernel; the result is checked below.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                at,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(fail(std::io::Error::last_os_error()).with_detail(format!(
                "{length} bytes at {at} of a file of {} bytes",
                about.len()
            )));
        }
        // SAFETY: the mapping created above. Guest memory is excluded from core dumps.
        unsafe { libc::madvise(base, length, libc::MADV_DONTDUMP) };
        let mut map = Self {
            base: base.expose_provenance(),
            length,
            lead,
            size,
            page,
            watch: None,
            _taken: taken,
        };
        let in_pages = usize::try_from(page).map_err(too_large)?;
        map.watch = Some(sigbus::watch(map.base, length, in_pages, lost)?);
        Ok(map)
    }

    /// Returns the address of the first mapped byte of the part.
    pub(super) fn start(&self) -> usize {
        self.base + self.lead
    }

    /// Returns the size of the part, in bytes.
    pub(super) fn size(&self) -> usize {
        self.size
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        self.watch = None;
        // SAFETY: mapped by `new`; everything that points into it holds an `Arc` of it, and the last one is gone.
        unsafe {
            libc::munmap(
                std::ptr::with_exposed_provenance_mut(self.base),
                self.length,
            )
        };
    }
}

/// Returns the page size of a file's mappings, in bytes.
fn page_size(file: &File) -> Result<u64, Error> {
    // SAFETY: a C struct of integers, for which all zero is valid.
    let mut about: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the file is open, and the struct outlives the call.
    if unsafe { libc::fstatfs(file.as_raw_fd(), &mut about) } != 0 {
        let errno = std::io::Error::last_os_error().raw_os_error();
        return Err(Error::new(OPERATION, errno.unwrap_or(libc::EIO)));
    }
    if about.f_type == HUGETLBFS_MAGIC {
        return Ok(u64::try_from(about.f_bsize).unwrap_or(DMA_PAGE));
    }
    // SAFETY: reads a system constant.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    Ok(u64::try_from(page).unwrap_or(4096))
}

/// A guest's memory.
pub(super) struct Memory {
    mapped: Vec<Mapped>,
    maps: Vec<Map>,
    /// Ranges registered with SPDK for DMA.
    registered: Vec<(usize, usize)>,
}

impl Memory {
    /// Maps the regions of a table, each from its file. With `dma`, regions on huge pages are registered with SPDK.
    /// That visits every page, so it is done only if a device needs it.
    pub(super) fn new(
        table: &Table,
        files: &[OwnedFd],
        lost: &Arc<Lost>,
        room: &Arc<Room>,
        dma: bool,
    ) -> Result<Self, Error> {
        room::check(table, dma)
            .map_err(|fault| Error::new(OPERATION, libc::ENOMEM).with_detail(fault.to_string()))?;
        let mut memory = Self {
            mapped: Vec::with_capacity(MAX_REGIONS),
            maps: Vec::with_capacity(MAX_REGIONS),
            registered: Vec::new(),
        };
        for (region, file) in table.regions().iter().zip(files) {
            let map = Map::new(file, region.offset, region.size, lost, room)?;
            memory.mapped.push(Mapped {
                guest: region.guest,
                user: region.user,
                size: region.size,
                host: map.start(),
            });
            if dma && map.page >= DMA_PAGE && register(map.base, map.length) {
                memory.registered.push((map.base, map.length));
            }
            memory.maps.push(map);
        }
        Ok(memory)
    }

    /// Returns the mapped regions.
    pub(super) fn regions(&self) -> &[Mapped] {
        &self.mapped
    }

    /// Returns whether all of the memory is registered for DMA.
    pub(super) fn is_registered(&self) -> bool {
        self.registered.len() == self.maps.len()
    }
}

/// Registers a mapping for DMA; without that, devices cannot access it.
fn register(base: usize, length: usize) -> bool {
    let start: *mut c_void = std::ptr::with_exposed_provenance_mut(base);
    // SAFETY: a mapping of whole 2 MiB pages, which lives until `Memory` unregisters it.
    unsafe { sys::spdk_mem_register(start, length) == 0 }
}

impl Drop for Memory {
    fn drop(&mut self) {
        for (base, length) in self.registered.drain(..) {
            let start: *mut c_void = std::ptr::with_exposed_provenance_mut(base);
            // SAFETY: registered by `new` with the same range, and mapped until `maps` is dropped after this.
            unsafe { sys::spdk_mem_unregister(start, length) };
        }
    }
}

/// The worker's view of the memory: the table that is searched for each descriptor, contiguous for the cache.
pub(crate) struct View {
    regions: [Mapped; MAX_REGIONS],
    count: usize,
    _memory: Arc<Memory>,
}

impl View {
    pub(super) fn new(memory: Arc<Memory>) -> Self {
        let mut regions = [Mapped::default(); MAX_REGIONS];
        let count = memory.regions().len().min(MAX_REGIONS);
        regions[..count].copy_from_slice(&memory.regions()[..count]);
        Self {
            regions,
            count,
            _memory: memory,
        }
    }

    #[inline]
    fn regions(&self) -> &[Mapped] {
        &self.regions[..self.count]
    }

    /// Translates an address of this process to a guest-physical address.
    pub(super) fn to_guest(&self, host: usize) -> Option<u64> {
        to_guest(self.regions(), host)
    }
}

impl Guest for View {
    #[inline]
    fn translate(&self, address: u64, length: u64) -> Option<(usize, u64)> {
        by_guest(self.regions(), address, length)
    }

    #[inline]
    fn descriptor(&self, table: usize, index: u32) -> Descriptor {
        let words = std::ptr::with_exposed_provenance::<[u64; 2]>(table + index as usize * 16);
        // SAFETY: the chain walk requests only descriptors of tables that it translated contiguously, or of the
        // ring's own table; this view keeps them mapped. The guest may write concurrently: the copy is volatile,
        // made once, and validated afterwards. An indirect table may be unaligned.
        let [address, rest] = unsafe {
            if table.is_multiple_of(8) {
                [
                    words.cast::<u64>().read_volatile(),
                    words.cast::<u64>().add(1).read_volatile(),
                ]
            } else {
                words.read_unaligned()
            }
        };
        Descriptor::from_words(u64::from_le(address), u64::from_le(rest))
    }
}
