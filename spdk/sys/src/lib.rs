//! bindgen's bindings to SPDK v26.01 and to the C shim: exactly the items in `build/allowlist.rs`, with SPDK's own
//! names and layouts.
//!
//! Nothing here is safe by itself; the `spdk` crate upholds the invariants.

#![allow(non_camel_case_types, non_snake_case, non_upper_case_globals)]
#![allow(missing_docs, unsafe_op_in_unsafe_fn)]
#![allow(clippy::all, clippy::undocumented_unsafe_blocks)]

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
