//! An allocator that overwrites memory with zeros before it is given back: keys pass through buffers of
//! requests, messages and strings that no code of this project frees itself, and would stay readable
//! in a core dump.

use std::alloc::{GlobalAlloc, Layout};

/// Wipes what `A` gets back.
#[derive(Debug, Default, Clone, Copy)]
pub struct Wiping<A>(pub A);

// `realloc` stays the trait's: it moves to a new block and gives the old one back by `dealloc`.
// SAFETY: all memory comes from `A` and goes back to it, with the layouts that it was asked for.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Wiping<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        unsafe { self.0.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller gives up a block of this layout. Other than a write that nobody reads, the
        // compiler does not leave this one out.
        unsafe {
            libc::explicit_bzero(pointer.cast(), layout.size());
            self.0.dealloc(pointer, layout);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    thread_local! {
        /// What each block had in it when it came back.
        static FREED: RefCell<Vec<Vec<u8>>> = RefCell::default();
    }

    struct Watched;

    // SAFETY: the system's allocator, which is asked for the same.
    unsafe impl GlobalAlloc for Watched {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            // SAFETY: as the caller promises.
            unsafe { std::alloc::System.alloc(layout) }
        }

        unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
            // SAFETY: a block of this layout, which the tests have written in full.
            unsafe {
                let bytes = std::slice::from_raw_parts(pointer, layout.size());
                FREED.with_borrow_mut(|freed| freed.push(bytes.to_vec()));
                std::alloc::System.dealloc(pointer, layout);
            }
        }
    }

    #[test]
    fn memory_is_zero_when_it_is_given_back_and_kept_while_it_grows_or_shrinks() {
        let allocator = Wiping(Watched);
        let of = |size| Layout::from_size_align(size, 8).expect("a layout");
        // SAFETY: each block is used within its size, and given back once with its layout.
        unsafe {
            let block = allocator.alloc(of(64));
            block.write_bytes(0x5a, 64);
            let grown = allocator.realloc(block, of(64), 256);
            assert!((0..64).all(|at| *grown.add(at) == 0x5a));
            grown.write_bytes(0x5a, 256);
            let small = allocator.realloc(grown, of(256), 16);
            assert!((0..16).all(|at| *small.add(at) == 0x5a));
            allocator.dealloc(small, of(16));
        }
        let freed = FREED.take();
        let sizes: Vec<usize> = freed.iter().map(Vec::len).collect();
        assert_eq!(sizes, [64, 256, 16]);
        assert!(freed.concat().iter().all(|byte| *byte == 0), "{freed:?}");
    }
}
