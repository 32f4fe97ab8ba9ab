//! Monitors I/O that devices complete with errors. One counter over all bdevs gates the check of each bdev: while
//! nothing fails, no call crosses into SPDK.
//!
//! ```text
//!   fine --an I/O fails--> failing: log, event --no error for QUIET--> fine: log, event
//! ```

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use spdk::bdev::{self, IoErrors};
use spdk::{CallError, Handle};

use super::{Health, Monitor};
use crate::events::{Event, EventType};
use crate::resource::{Key, Shared};

/// Time without errors after which a device counts as recovered.
const QUIET: Duration = Duration::from_secs(5);

/// Monitor of the I/O errors of all bdevs.
pub(crate) struct Failures {
    spdk: Handle,
    shared: Arc<Shared>,
    health: Arc<Health>,
    /// Errors of all bdevs at the last check.
    total: u64,
    /// Bdevs that have had errors.
    devices: HashMap<String, Device>,
}

/// State of a bdev that has had errors.
#[derive(Debug, Default)]
struct Device {
    /// Error counts at the last check.
    counted: IoErrors,
    /// The current spell, while the device fails.
    spell: Option<Spell>,
}

/// A period in which a device fails, up to `QUIET` after its last error.
#[derive(Debug)]
struct Spell {
    errors: IoErrors,
    last: Instant,
}

/// Result of a check of one device.
#[derive(Debug, PartialEq, Eq)]
enum News {
    /// First errors of a spell.
    Fails,
    /// Further errors of a spell.
    FailsStill,
    /// No new errors.
    None,
}

impl Device {
    fn take(&mut self, now: IoErrors, at: Instant) -> News {
        let new = now.since(&self.counted);
        self.counted = now;
        if new.all() == 0 {
            return News::None;
        }
        match &mut self.spell {
            Some(spell) => {
                spell.errors = sum(&spell.errors, &new);
                spell.last = at;
                News::FailsStill
            }
            None => {
                self.spell = Some(Spell {
                    errors: new,
                    last: at,
                });
                News::Fails
            }
        }
    }

    /// Ends a spell that is over, and returns its errors.
    fn end(&mut self, at: Instant) -> Option<IoErrors> {
        let is_over = |spell: &mut Spell| at.saturating_duration_since(spell.last) >= QUIET;
        self.spell.take_if(is_over).map(|spell| spell.errors)
    }
}

fn sum(one: &IoErrors, other: &IoErrors) -> IoErrors {
    IoErrors {
        read: one.read.saturating_add(other.read),
        write: one.write.saturating_add(other.write),
        flush: one.flush.saturating_add(other.flush),
        other: one.other.saturating_add(other.other),
    }
}

/// Formats error counts by type.
struct Words<'a>(&'a IoErrors);

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let IoErrors {
            read,
            write,
            flush,
            other,
        } = self.0;
        let kinds = [
            (read, "reads"),
            (write, "writes"),
            (flush, "flushes"),
            (other, "others"),
        ];
        let mut separator = "";
        for (number, kind) in kinds.into_iter().filter(|(number, _)| **number > 0) {
            write!(f, "{separator}{number} {kind}")?;
            separator = ", ";
        }
        Ok(())
    }
}

impl Failures {
    /// Creates the monitor for all bdevs.
    pub(crate) fn new(spdk: Handle, shared: Arc<Shared>, health: Arc<Health>) -> Self {
        Self {
            spdk,
            shared,
            health,
            total: 0,
            devices: HashMap::new(),
        }
    }

    fn take(&mut self, found: Vec<(String, IoErrors)>, at: Instant) {
        // A bdev that no longer reports errors was removed, or replaced by another of the same name.
        self.devices.retain(|name, device| {
            device.spell.is_some() || found.iter().any(|(it, _)| it == name)
        });
        for (name, errors) in found {
            let device = self.devices.entry(name.clone()).or_default();
            let news = device.take(errors, at);
            let Some(spell) = device.spell.as_ref().filter(|_| news != News::None) else {
                continue;
            };
            let what = format!("its device fails I/O: {} so far", Words(&spell.errors));
            self.health
                .note_failing(&Key::bdev(&name), Some(what.clone()));
            if news == News::Fails {
                let object = self.tell(EventType::VolumeFails, &name, &what);
                tracing::warn!(volume = object, bdev = name, "{what}; more are counted");
            }
        }
    }

    fn end(&mut self, at: Instant) {
        let mut ended = Vec::new();
        for (name, device) in &mut self.devices {
            if let Some(errors) = device.end(at) {
                ended.push((name.clone(), errors));
            }
        }
        for (name, errors) in ended {
            self.health.note_failing(&Key::bdev(&name), None);
            let errors = Words(&errors);
            let what = format!("no I/O has failed for {QUIET:?}; before that {errors} did");
            let object = self.tell(EventType::VolumeRecovered, &name, &what);
            tracing::info!(volume = object, bdev = name, "{what}");
        }
    }

    /// Emits an event of the volume that owns the bdev. Returns the volume's typed name, or the bdev's name if it
    /// belongs to no object of the API.
    fn tell(&self, what: EventType, bdev: &str, reason: &str) -> String {
        let owner = self.shared.registry.owner(&Key::bdev(bdev));
        let object = owner.map_or_else(|| bdev.to_owned(), |name| name.key().to_string());
        let event = Event::now(what, &object).because(reason);
        self.shared.events.tell(event);
        object
    }
}

impl Monitor for Failures {
    async fn check(&mut self) -> Result<(), CallError> {
        let total = bdev::device_errors();
        if total != self.total {
            let found = self.spdk.call(async move |spdk| bdev::failed(spdk).await);
            let found = found.await?;
            self.total = total;
            self.take(found, Instant::now());
        }
        self.end(Instant::now());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reads(read: u64) -> IoErrors {
        IoErrors {
            read,
            ..IoErrors::default()
        }
    }

    #[test]
    fn a_device_fails_from_its_first_error_until_none_has_come_for_a_while() {
        let begun = Instant::now();
        let mut device = Device::default();
        assert_eq!(device.take(reads(3), begun), News::Fails);
        assert_eq!(device.take(reads(3), begun + QUIET / 2), News::None);
        assert_eq!(device.take(reads(5), begun + QUIET / 2), News::FailsStill);
        assert_eq!(device.end(begun + QUIET), None);
        assert_eq!(device.end(begun + 2 * QUIET), Some(reads(5)));
        assert_eq!(device.end(begun + 3 * QUIET), None);
        assert_eq!(device.take(reads(6), begun + 3 * QUIET), News::Fails);
        assert_eq!(device.end(begun + 4 * QUIET), Some(reads(1)));
        let anew = device.take(reads(2), begun + 5 * QUIET);
        assert_eq!(anew, News::Fails, "another bdev has the name");
    }

    #[test]
    fn errors_are_told_by_what_failed() {
        let errors = IoErrors {
            read: 1,
            flush: 2,
            ..IoErrors::default()
        };
        assert_eq!(Words(&errors).to_string(), "1 reads, 2 flushes");
    }
}
