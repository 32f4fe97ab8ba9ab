//! An allocator that zeroes memory before it is freed. Keys pass through buffers of requests, messages and strings
//! that this project's code does not free itself; without this they would stay readable in a core dump.

use std::alloc::{GlobalAlloc, Layout};

/// Zeroes memory before returning it to `A`.
#[derive(Debug, Default, Clone, Copy)]
pub struct Wiping<A>(pub A);

// `realloc` is the trait's default: it allocates a new block, copies, and frees the old one by `dealloc`, which
// zeroes it.
// SAFETY: every block comes from `A` and returns to `A`, with the layout that it was allocated with.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Wiping<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: passes on the caller's contract for `layout` to `A`.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: passes on the caller's contract for `layout` to `A`.
        unsafe { self.0.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: by the caller's contract the block has this layout and is no longer used. Unlike a plain write to
        // memory about to be freed, explicit_bzero is not optimized away as a dead store.
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
        /// The contents of each block when it was freed.
        static FREED: RefCell<Vec<Vec<u8>>> = RefCell::default();
    }

    struct Watched;

    // SAFETY: delegates to the system's allocator with the same layouts.
    unsafe impl GlobalAlloc for Watched {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            // SAFETY: passes on the caller's contract for `layout`.
            unsafe { std::alloc::System.alloc(layout) }
        }

        unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
            // SAFETY: a block of this layout, fully initialized by the tests.
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
        // SAFETY: each block is accessed within its size, and freed once with its layout.
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
