//! Delay bdevs: add latency to the I/O of another bdev.

use spdk_sys as sys;

use super::{REMOVAL_LIMIT, check_name, claimed, claimed_by, existing, lookup, stand_in};
use crate::app_thread::Spdk;
use crate::completion::{Status, call_within};
use crate::cstr::cstr;
use crate::error::{Error, check};

/// SPDK's product name of this kind (see [`Info::product`](super::Info)).
pub const PRODUCT: &str = "delay";

/// The longest delay, in microseconds: 60 s, more than hosts wait for an I/O.
pub const MAX_US: u32 = 60_000_000;

/// Microseconds added to each I/O: `avg` to 99 of 100, `p99` to the rest, chosen at random. Unmap, flush and reset
/// are not delayed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as SPDK's are")]
pub struct Delays {
    pub avg_read_us: u32,
    pub p99_read_us: u32,
    pub avg_write_us: u32,
    pub p99_write_us: u32,
}

impl Delays {
    /// Validates the delays. EINVAL for more than [`MAX_US`], or a p99 below the average.
    fn checked(self, operation: &'static str) -> Result<sys::opi_bdev_delays, Error> {
        let invalid = |what: String| Err(Error::new(operation, libc::EINVAL).with_detail(what));
        for (avg, p99) in [
            (self.avg_read_us, self.p99_read_us),
            (self.avg_write_us, self.p99_write_us),
        ] {
            if p99 > MAX_US {
                return invalid(format!("a delay of {p99} us: {MAX_US} at most"));
            }
            if avg > p99 {
                return invalid(format!(
                    "a p99 of {p99} us is below the average of {avg} us"
                ));
            }
        }
        Ok(sys::opi_bdev_delays {
            avg_read_us: self.avg_read_us.into(),
            p99_read_us: self.p99_read_us.into(),
            avg_write_us: self.avg_write_us.into(),
            p99_write_us: self.p99_write_us.into(),
        })
    }
}

/// Creates a delay bdev, which claims `base` exclusively. SPDK recreates it with these delays when the base comes
/// back. ENODEV for an unknown base, EBUSY if the base is claimed, EEXIST if the name is in use.
pub async fn create(spdk: Spdk, name: &str, base: &str, delays: Delays) -> Result<(), Error> {
    const OPERATION: &str = "create delay bdev";
    let delays = delays.checked(OPERATION)?;
    check_name(spdk, OPERATION, name)?;
    // SPDK itself accepts a base that does not exist yet, and waits for it.
    let found = existing(spdk, OPERATION, base)?;
    // SAFETY: runs on the app thread; the bdev was found without an await since.
    if let Some(owner) = unsafe { claimed_by(found.as_ptr()) } {
        return Err(claimed(OPERATION, base, &owner));
    }
    let (c_name, c_base) = (cstr("bdev name", name)?, cstr("base bdev", base)?);
    // SAFETY: runs on the app thread; strings and delays outlive the call, which copies them.
    let rc = unsafe { sys::opi_bdev_delay_create(c_name.as_ptr(), c_base.as_ptr(), &delays) };
    let made = check(OPERATION, rc);
    match made.map_err(|error| error.with_detail(format!("{name:?} on {base:?}"))) {
        // Rollback: SPDK keeps the name of a delay bdev that it could not create, and still lists one removed with
        // its base.
        Err(error) => Err(error.after_undo(forget(spdk, name).await)),
        made => made,
    }
}

/// Changes the delays of a delay bdev, also while it is in use. Applies to I/O that its base completes from now on.
/// ENODEV if there is no delay bdev of that name. App thread.
pub fn set(_: Spdk, name: &str, delays: Delays) -> Result<(), Error> {
    const OPERATION: &str = "set delays of bdev";
    let delays = delays.checked(OPERATION)?;
    let c_name = cstr("bdev name", name)?;
    // SAFETY: runs on the app thread; name and delays outlive the call.
    let rc = unsafe { sys::opi_bdev_delay_set(c_name.as_ptr(), &delays) };
    check(OPERATION, rc).map_err(|error| error.with_detail(format!("{name:?}")))
}

/// Deletes a delay bdev, also one that was removed together with its base; the base is unchanged. EBUSY if a module
/// claims it, or another bdev has the name.
pub async fn remove(spdk: Spdk, name: &str) -> Result<(), Error> {
    if let Some(found) = lookup(spdk, name)?
        && found.product != PRODUCT
    {
        let what = format!("another bdev that was not made here has the name {name:?}");
        return Err(Error::new("delete delay bdev", libc::EBUSY).with_detail(what));
    }
    match delete(spdk, name).await {
        Err(error) if error.errno.0 == libc::ENODEV => forget(spdk, name).await,
        result => result,
    }
}

async fn delete(spdk: Spdk, name: &str) -> Result<(), Error> {
    const OPERATION: &str = "delete delay bdev";
    let bdev = existing(spdk, OPERATION, name)?;
    // SAFETY: runs on the app thread; the bdev was found without an await since.
    if let Some(owner) = unsafe { claimed_by(bdev.as_ptr()) } {
        return Err(claimed(OPERATION, name, &owner));
    }
    let c_name = cstr("bdev name", name)?;
    let status = call_within::<Status>(spdk, REMOVAL_LIMIT, OPERATION, |callback, argument| {
        // SAFETY: on the app thread; SPDK copies the name; the callback takes the argument back, once.
        unsafe { sys::opi_bdev_delay_delete(c_name.as_ptr(), callback, argument) };
        0
    })
    .await?;
    check(OPERATION, status).map_err(|error| error.with_detail(format!("{name:?}")))
}

/// Makes SPDK forget a delay bdev that was removed together with its base.
async fn forget(spdk: Spdk, name: &str) -> Result<(), Error> {
    const OPERATION: &str = "forget delay bdev";
    stand_in::forget(spdk, OPERATION, c"delay", name, async || {
        delete(spdk, name).await
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_that_spdk_would_refuse_or_overflow_are_refused() {
        let checked = |avg_read_us, p99_read_us| {
            let delays = Delays {
                avg_read_us,
                p99_read_us,
                ..Delays::default()
            };
            delays.checked("test").is_ok()
        };
        assert!(checked(0, 0) && checked(1, 1) && checked(MAX_US, MAX_US));
        assert!(!checked(2, 1) && !checked(0, MAX_US + 1) && !checked(u32::MAX, u32::MAX));
    }
}
