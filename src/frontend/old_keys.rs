//! Keys that a host had before, which admit it beside its own until a given time.
//!
//! ```text
//! update ──► after() ──► SPDK has both ──► state: kept behind the host's record, sealed as it is
//!                            │                └ start: restore() ──► ensure() gives SPDK both again
//!                            └ EndOldKeys, twice a second: SPDK has the new ones alone
//! ```

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use prost::Message;
use prost_types::Timestamp;
use spdk::nvmf::host::{self, OldKeys};
use spdk::{CallError, Handle};

use super::NvmeHosts;
use crate::api::own::NvmeHost;
use crate::error::Error;
use crate::health::Look;
use crate::resource::{Collection, Key};

/// Longest time for which old keys hold.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// The last second of the year 9999, as JSON can tell it.
const LAST_SECOND: u64 = 253_402_300_799;

/// A time of the API, if it is one.
pub(super) fn time_of(time: &Timestamp) -> Option<SystemTime> {
    let seconds = u64::try_from(time.seconds).ok()?;
    let nanos = u32::try_from(time.nanos).ok()?;
    if seconds > LAST_SECOND || nanos > 999_999_999 {
        return None;
    }
    SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos))
}

/// What an update makes of old keys: those that hold after it.
///
/// # Errors
/// INVALID_ARGUMENT where a time is set that is too late, or that no key could use.
pub(super) fn after(
    old: &NvmeHost,
    wanted: &NvmeHost,
    held: Option<&OldKeys>,
    now: SystemTime,
) -> Result<Option<OldKeys>, Error> {
    let invalid = |field: &str, what: &str| Err(Error::invalid(field, what));
    let has_other_keys = old.psk != wanted.psk
        || old.dhchap_key != wanted.dhchap_key
        || old.dhchap_ctrlr_key != wanted.dhchap_ctrlr_key;
    let until = wanted.old_keys_until.as_ref().and_then(time_of);
    let Some(until) = until.filter(|until| *until > now) else {
        return Ok(None);
    };
    if old.old_keys_until == wanted.old_keys_until {
        let stay = !has_other_keys && old.hostnqn == wanted.hostnqn;
        return Ok(held.filter(|_| stay).cloned());
    }
    if until.duration_since(now).is_ok_and(|time| time > LONGEST) {
        return invalid("old_keys_until", "is later than 30 days from now");
    }
    if old.hostnqn != wanted.hostnqn {
        let what = "is not for a change of hostnqn: keys of before are another host's";
        return invalid("old_keys_until", what);
    }
    if !has_other_keys {
        let Some(held) = held else {
            let what = "is set where no key is replaced, and none of before holds";
            return invalid("old_keys_until", what);
        };
        return Ok(Some(OldKeys {
            until,
            ..held.clone()
        }));
    }
    if held.is_some_and(|held| is_back(held, wanted)) {
        return Ok(None);
    }
    let is_replaced = |old: &[u8], new: &[u8]| !old.is_empty() && !new.is_empty() && old != new;
    let dhchap = is_replaced(&old.dhchap_key, &wanted.dhchap_key);
    if !dhchap && is_replaced(&old.dhchap_ctrlr_key, &wanted.dhchap_ctrlr_key) {
        let what = "must change with dhchap_ctrlr_key where old_keys_until is set: by it the subsystem knows which \
                    of its own keys the host has";
        return invalid("dhchap_key", what);
    }
    let psk = is_replaced(&old.psk, &wanted.psk);
    if !dhchap && !psk {
        let what = "is set where no key is replaced by another";
        return invalid("old_keys_until", what);
    }
    let taken = |is_old: bool, key: &Vec<u8>| if is_old { key.clone() } else { Vec::new() };
    Ok(Some(OldKeys {
        until,
        psk: taken(psk, &old.psk),
        dhchap: taken(dhchap, &old.dhchap_key),
        dhchap_ctrlr: taken(dhchap, &old.dhchap_ctrlr_key),
    }))
}

/// Whether a host gets its old keys again: no new ones are to hold beside them, least of all those of an update
/// that is undone.
fn is_back(held: &OldKeys, wanted: &NvmeHost) -> bool {
    let same = |old: &[u8], new: &[u8]| old.is_empty() || old == new;
    same(&held.psk, &wanted.psk) && same(&held.dhchap, &wanted.dhchap_key)
}

/// Old keys, as they are kept behind the record of their host.
#[derive(Clone, PartialEq, Message)]
struct Kept {
    #[prost(bytes = "vec", tag = "1000")]
    psk: Vec<u8>,
    #[prost(bytes = "vec", tag = "1001")]
    dhchap: Vec<u8>,
    #[prost(bytes = "vec", tag = "1002")]
    dhchap_ctrlr: Vec<u8>,
}

/// The old keys of all hosts.
#[derive(Default)]
pub(super) struct HeldKeys(Mutex<HashMap<Key, OldKeys>>);

impl HeldKeys {
    /// Those that hold for a host.
    pub(super) fn of(&self, host: &Key, now: SystemTime) -> Option<OldKeys> {
        let held = self.0.lock().get(host).cloned();
        held.filter(|keys| keys.until > now)
    }

    /// From now on these hold.
    pub(super) fn set(&self, host: &Key, keys: Option<OldKeys>) {
        let mut held = self.0.lock();
        match keys {
            Some(keys) => held.insert(host.clone(), keys),
            None => held.remove(host),
        };
    }

    /// As they are stored.
    pub(super) fn kept(&self, host: &Key, now: SystemTime) -> Vec<u8> {
        let kept = self.of(host, now).map(|keys| Kept {
            psk: keys.psk,
            dhchap: keys.dhchap,
            dhchap_ctrlr: keys.dhchap_ctrlr,
        });
        kept.unwrap_or_default().encode_to_vec()
    }

    /// As they were stored.
    pub(super) fn restore(&self, host: &Key, object: &NvmeHost, kept: &[u8]) {
        let kept = Kept::decode(kept).unwrap_or_default();
        let until = object.old_keys_until.as_ref().and_then(time_of);
        if let Some(until) = until
            && kept != Kept::default()
        {
            let keys = OldKeys {
                until,
                psk: kept.psk,
                dhchap: kept.dhchap,
                dhchap_ctrlr: kept.dhchap_ctrlr,
            };
            self.set(host, Some(keys));
        }
    }

    fn any_over(&self, now: SystemTime) -> bool {
        self.0.lock().values().any(|keys| keys.until <= now)
    }

    fn forget_over(&self, now: SystemTime) {
        self.0.lock().retain(|_, keys| keys.until > now);
    }
}

/// Ends old keys when their time is over.
pub(crate) struct EndOldKeys {
    spdk: Handle,
    hosts: Arc<Collection<NvmeHosts>>,
}

impl EndOldKeys {
    /// Of these hosts.
    pub(crate) fn new(spdk: Handle, hosts: Arc<Collection<NvmeHosts>>) -> Self {
        Self { spdk, hosts }
    }
}

impl Look for EndOldKeys {
    async fn look(&mut self) -> Result<(), CallError> {
        let now = SystemTime::now();
        let held = self.hosts.kind().old_keys();
        if !held.any_over(now) {
            return Ok(());
        }
        let ended = self
            .spdk
            .call(async move |spdk| host::end_old_keys(spdk, now));
        if ended.await? {
            held.forget_over(now);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn host(psk: &str, dhchap: &str, ctrlr: &str, until: i64) -> NvmeHost {
        NvmeHost {
            hostnqn: "nqn.host".to_owned(),
            psk: psk.into(),
            dhchap_key: dhchap.into(),
            dhchap_ctrlr_key: ctrlr.into(),
            old_keys_until: (until > 0).then_some(Timestamp {
                seconds: until,
                nanos: 0,
            }),
            ..NvmeHost::default()
        }
    }

    fn keys(psk: &str, dhchap: &str, ctrlr: &str, until: u64) -> OldKeys {
        OldKeys {
            until: at(until),
            psk: psk.into(),
            dhchap: dhchap.into(),
            dhchap_ctrlr: ctrlr.into(),
        }
    }

    const NOW: u64 = 1000;

    fn holds(old: &NvmeHost, wanted: &NvmeHost, held: Option<&OldKeys>) -> Option<OldKeys> {
        after(old, wanted, held, at(NOW)).expect("it may be")
    }

    #[test]
    fn keys_that_are_replaced_hold_until_the_time_that_is_set_with_the_new_ones() {
        let before = host("p1", "d1", "c1", 0);
        let held = holds(&before, &host("p2", "d2", "c2", 2000), None);
        assert!(held == Some(keys("p1", "d1", "c1", 2000)));
        let held = holds(&before, &host("p2", "d1", "c1", 2000), None);
        assert!(
            held == Some(keys("p1", "", "", 2000)),
            "what stays is not old"
        );
        let held = holds(&before, &host("p1", "d2", "c1", 2000), None);
        assert!(held == Some(keys("", "d1", "c1", 2000)));
        for over in [0, 1, 1000] {
            assert!(holds(&before, &host("p2", "d2", "c2", over), None).is_none());
        }
    }

    #[test]
    fn old_keys_end_early_by_another_time_by_other_keys_and_by_going_back() {
        let before = host("p2", "d2", "", 2000);
        let held = keys("p1", "d1", "", 2000);
        let after = |wanted: &NvmeHost| holds(&before, wanted, Some(&held));
        assert!(after(&host("p2", "d2", "", 2000)) == Some(held.clone()));
        assert!(after(&host("p2", "d2", "", 3000)) == Some(keys("p1", "d1", "", 3000)));
        assert!(after(&host("p2", "d2", "", 1)).is_none());
        assert!(after(&host("p2", "d2", "", 0)).is_none());
        assert!(after(&host("p3", "d3", "", 2000)).is_none(), "not set anew");
        assert!(after(&host("p3", "d3", "", 2500)) == Some(keys("p2", "d2", "", 2500)));
        assert!(after(&host("p1", "d1", "", 2500)).is_none(), "back");
    }

    #[test]
    fn a_time_that_no_key_could_use_is_refused() {
        let before = host("p1", "d1", "c1", 0);
        let late = 1001 + LONGEST.as_secs().cast_signed();
        let mut other = host("p2", "d2", "c2", 2000);
        other.hostnqn = "nqn.other".to_owned();
        for (wanted, field) in [
            (host("p2", "d2", "c2", late), "old_keys_until"),
            (host("p1", "d1", "c1", 2000), "old_keys_until"),
            (host("p1", "d1", "c2", 2000), "dhchap_key"),
            (host("p1", "", "", 2000), "old_keys_until"),
            (other, "old_keys_until"),
        ] {
            let refused = after(&before, &wanted, None, at(NOW))
                .err()
                .expect("refused");
            assert!(refused.to_string().starts_with(field), "{refused}");
        }
    }

    #[test]
    fn old_keys_come_back_as_they_were_kept_until_they_are_over() {
        let (held, name) = (HeldKeys::default(), Key::from("nvmeHosts/a"));
        assert!(held.kept(&name, at(NOW)).is_empty());
        held.set(&name, Some(keys("p1", "d1", "c1", 2000)));
        let kept = held.kept(&name, at(NOW));
        assert!(held.kept(&name, at(2000)).is_empty(), "over");
        let again = HeldKeys::default();
        again.restore(&name, &host("p2", "d2", "c2", 2000), &kept);
        assert!(again.of(&name, at(NOW)) == Some(keys("p1", "d1", "c1", 2000)));
        assert!(!again.any_over(at(1999)) && again.any_over(at(2000)));
        again.forget_over(at(2000));
        assert!(again.of(&name, at(NOW)).is_none());
    }

    #[test]
    fn a_time_is_one_of_the_years_that_json_can_tell() {
        let time = |seconds, nanos| time_of(&Timestamp { seconds, nanos });
        assert_eq!(time(1, 5), Some(at(1) + Duration::from_nanos(5)));
        for (seconds, nanos) in [(-1, 0), (0, -1), (0, 1_000_000_000), (i64::MAX, 0)] {
            assert_eq!(time(seconds, nanos), None);
        }
    }
}
