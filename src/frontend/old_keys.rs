//! Previous keys of a host, accepted beside its current ones until a deadline.
//!
//! ```text
//! update ──► after() ──► SPDK accepts both ──► state: stored with the host's record, sealed like it
//!                            │                    └ restart: restore() ──► ensure() sets both in SPDK again
//!                            └ EndOldKeys, twice a second, after the deadline: SPDK accepts the new keys alone
//! ```

use std::collections::HashMap;
use std::fmt;
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
use crate::health::Monitor;
use crate::resource::{CallContext, Collection, Key, Update};

/// Longest period for which previous keys are accepted.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Timeout for updating the record of a host.
const RECORD: Duration = Duration::from_secs(5);

/// Unix time of the last second of the year 9999, the limit of JSON timestamps.
const LAST_SECOND: u64 = 253_402_300_799;

/// Converts a timestamp of the API; `None` if it is out of range.
pub(super) fn time_of(time: &Timestamp) -> Option<SystemTime> {
    let seconds = u64::try_from(time.seconds).ok()?;
    let nanos = u32::try_from(time.nanos).ok()?;
    if seconds > LAST_SECOND || nanos > 999_999_999 {
        return None;
    }
    SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos))
}

/// Returns the previous keys accepted after an update. `set` is the deadline that the update names, even if unchanged;
/// with `None` the keys replaced by this update end at once, and earlier ones stay.
///
/// # Errors
/// INVALID_ARGUMENT if the deadline is too late or applies to no key; FAILED_PRECONDITION if keys are replaced while
/// older ones are still accepted.
pub(super) fn after(
    old: &NvmeHost,
    wanted: &NvmeHost,
    set: Option<Option<&Timestamp>>,
    held: Option<&OldKeys>,
    now: SystemTime,
) -> Result<Option<OldKeys>, Error> {
    let invalid = |field: &str, what: &str| Err(Error::invalid(field, what));
    let is_same_host = old.hostnqn == wanted.hostnqn;
    let Some(until) = set else {
        let stay = held.filter(|_| is_same_host);
        return Ok(stay.and_then(|held| beside(held, wanted)));
    };
    let until = until.and_then(time_of).filter(|until| *until > now);
    let Some(until) = until else {
        return Ok(None);
    };
    if until.duration_since(now).is_ok_and(|time| time > LONGEST) {
        return invalid("old_keys_until", "is later than 30 days from now");
    }
    if !is_same_host {
        let what = "is not for a change of hostnqn: keys of before are another host's";
        return invalid("old_keys_until", what);
    }
    let has_other_keys = old.psk != wanted.psk
        || old.dhchap_key != wanted.dhchap_key
        || old.dhchap_ctrlr_key != wanted.dhchap_ctrlr_key;
    let held = held.and_then(|held| beside(held, wanted));
    match held {
        Some(held) if !has_other_keys => return Ok(Some(OldKeys { until, ..held })),
        Some(held) => {
            let end = Timestamp::from(held.until);
            return Err(Error::failed_precondition(
                &old.name,
                format!(
                    "old keys hold until {end}, and there is room for those of one update: leave out old_keys_until to \
                     replace the keys of now alone, such as those of an answer that was lost, or end the old ones \
                     first, by an old_keys_until that is over"
                ),
            ));
        }
        None if !has_other_keys => {
            let what = "is set where no key is replaced, and none of before holds";
            return invalid("old_keys_until", what);
        }
        None => {}
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

/// Returns the previous keys that stay accepted beside the new ones: a key that becomes current again is dropped, and
/// so is a kind of key that the host no longer has.
fn beside(held: &OldKeys, wanted: &NvmeHost) -> Option<OldKeys> {
    let mut held = held.clone();
    if wanted.psk.is_empty() || wanted.psk == held.psk {
        held.psk.clear();
    }
    if wanted.dhchap_key.is_empty() || wanted.dhchap_key == held.dhchap {
        held.dhchap.clear();
        held.dhchap_ctrlr.clear();
    }
    (!held.psk.is_empty() || !held.dhchap.is_empty()).then_some(held)
}

/// Previous keys, as stored with the record of their host.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
struct Kept {
    #[prost(bytes = "vec", tag = "1000")]
    psk: Vec<u8>,
    #[prost(bytes = "vec", tag = "1001")]
    dhchap: Vec<u8>,
    #[prost(bytes = "vec", tag = "1002")]
    dhchap_ctrlr: Vec<u8>,
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept").finish_non_exhaustive()
    }
}

/// Previous keys of one host: the accepted ones, and those before the last change, for its rollback.
#[derive(Clone, Default)]
struct Held {
    now: Option<OldKeys>,
    before: Option<OldKeys>,
}

/// The previous keys of all hosts.
#[derive(Default)]
pub(super) struct HeldKeys(Mutex<HashMap<Key, Held>>);

impl HeldKeys {
    /// Returns the previous keys accepted for a host.
    pub(super) fn of(&self, host: &Key, now: SystemTime) -> Option<OldKeys> {
        let held = self.0.lock().get(host)?.now.clone();
        held.filter(|keys| keys.until > now)
    }

    /// Returns the keys that were accepted before the last change, to roll it back.
    pub(super) fn before(&self, host: &Key, now: SystemTime) -> Option<OldKeys> {
        let held = self.0.lock().get(host)?.before.clone();
        held.filter(|keys| keys.until > now)
    }

    /// Replaces the accepted previous keys, and remembers the old set for a rollback.
    pub(super) fn set(&self, host: &Key, keys: Option<OldKeys>) {
        let mut all = self.0.lock();
        let before = all.remove(host).and_then(|held| held.now);
        if keys.is_some() || before.is_some() {
            all.insert(host.clone(), Held { now: keys, before });
        }
    }

    /// Drops the keys of a host that is deleted.
    pub(super) fn forget(&self, host: &Key) {
        self.0.lock().remove(host);
    }

    /// Encodes the previous keys for the store.
    pub(super) fn kept(&self, host: &Key, now: SystemTime) -> Vec<u8> {
        let kept = self.of(host, now).map(|keys| Kept {
            psk: keys.psk,
            dhchap: keys.dhchap,
            dhchap_ctrlr: keys.dhchap_ctrlr,
        });
        kept.unwrap_or_default().encode_to_vec()
    }

    /// Restores the previous keys from the store.
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

    /// Returns the hosts whose previous keys have expired.
    fn over(&self, now: SystemTime) -> Vec<Key> {
        let all = self.0.lock();
        let is_over = |held: &Held| held.now.as_ref().is_some_and(|keys| keys.until <= now);
        let over = all.iter().filter(|(_, held)| is_over(held));
        over.map(|(host, _)| host.clone()).collect()
    }
}

/// Monitor that ends expired keys: first in SPDK, which cannot fail, then in the records. Removed from the state file,
/// they cannot be reactivated by a wrong clock after a restart.
pub(crate) struct EndOldKeys {
    spdk: Handle,
    hosts: Arc<Collection<NvmeHosts>>,
}

impl EndOldKeys {
    /// Creates the monitor for these hosts.
    pub(crate) fn new(spdk: Handle, hosts: Arc<Collection<NvmeHosts>>) -> Self {
        Self { spdk, hosts }
    }

    /// Updates the record of a host, which drops its expired keys, unless they have been replaced meanwhile by keys that
    /// are still accepted.
    async fn record(&self, host: &Key) -> Result<(), Error> {
        let update = Update {
            object: Some(NvmeHost {
                name: host.to_string(),
                ..NvmeHost::default()
            }),
            mask: Some(vec!["old_keys_until".to_owned()]),
            allow_missing: false,
        };
        let call = CallContext::within(RECORD);
        self.hosts
            .update_if(call, update, has_expired)
            .await
            .map(drop)
    }
}

/// Whether the previous keys of the host have expired, by its record.
fn has_expired(host: &NvmeHost) -> bool {
    let until = host.old_keys_until.as_ref().and_then(time_of);
    until.is_some_and(|until| until <= SystemTime::now())
}

impl Monitor for EndOldKeys {
    async fn check(&mut self) -> Result<(), CallError> {
        let now = SystemTime::now();
        if host::has_old_keys() {
            let ended = self
                .spdk
                .call(async move |spdk| host::end_old_keys(spdk, now));
            ended.await?;
        }
        let held = self.hosts.kind().old_keys();
        for host in held.over(now) {
            // A host deleted meanwhile needs no update; any other failure is retried at the next check.
            if let Err(error) = self.record(&host).await {
                tracing::debug!(%host, %error, "the record of old keys that have ended is not changed yet");
            }
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

    /// Result of an update that names the deadline that `wanted` has.
    fn try_named(
        old: &NvmeHost,
        wanted: &NvmeHost,
        held: Option<&OldKeys>,
    ) -> Result<Option<OldKeys>, Error> {
        let set = Some(wanted.old_keys_until.as_ref());
        after(old, wanted, set, held, at(NOW))
    }

    fn holds(old: &NvmeHost, wanted: &NvmeHost, held: Option<&OldKeys>) -> Option<OldKeys> {
        try_named(old, wanted, held).expect("it may be")
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
    fn old_keys_end_early_by_another_time_and_by_going_back() {
        let before = host("p2", "d2", "", 2000);
        let held = keys("p1", "d1", "", 2000);
        let after = |wanted: &NvmeHost| holds(&before, wanted, Some(&held));
        assert!(after(&host("p2", "d2", "", 2000)) == Some(held.clone()));
        assert!(after(&host("p2", "d2", "", 3000)) == Some(keys("p1", "d1", "", 3000)));
        assert!(after(&host("p2", "d2", "", 1)).is_none());
        assert!(after(&host("p2", "d2", "", 0)).is_none());
        let back = after(&host("p1", "d1", "", 2500));
        assert!(
            back == Some(keys("p2", "d2", "", 2500)),
            "the other way round"
        );
    }

    #[test]
    fn an_update_that_names_no_time_replaces_the_keys_of_now_alone() {
        let before = host("p2", "d2", "", 2000);
        let held = keys("p1", "d1", "c1", 2000);
        let after = |wanted: &NvmeHost| {
            super::after(&before, wanted, None, Some(&held), at(NOW)).expect("it may be")
        };
        let lost = after(&host("p3", "d3", "", 2000));
        assert!(lost == Some(held.clone()), "an answer that was lost");
        assert!(after(&host("p3", "d1", "", 2000)) == Some(keys("p1", "", "", 2000)));
        assert!(after(&host("", "d3", "", 2000)) == Some(keys("", "d1", "c1", 2000)));
        assert!(after(&host("p1", "d1", "", 2000)).is_none());
        let mut other = host("p3", "d3", "", 2000);
        other.hostnqn = "nqn.other".to_owned();
        assert!(after(&other).is_none());
        assert!(super::after(&before, &before, None, None, at(NOW)).is_ok_and(|of| of.is_none()));
    }

    #[test]
    fn keys_become_old_only_where_none_that_are_older_hold() {
        let before = host("p2", "d2", "", 2000);
        let held = keys("p1", "", "", 2000);
        for until in [2000, 2500] {
            let refused = try_named(&before, &host("p3", "d3", "", until), Some(&held));
            let refused = refused.err().expect("refused").to_string();
            assert!(
                refused.contains("old keys hold until 1970-01-01T00:33:20Z"),
                "{refused}"
            );
        }
        assert!(holds(&before, &host("p3", "d3", "", 1), Some(&held)).is_none());
    }

    #[test]
    fn a_change_that_is_undone_brings_back_what_held() {
        let (held, name) = (HeldKeys::default(), Key::from("nvmeHosts/a"));
        held.set(&name, Some(keys("p0", "", "", 2000)));
        held.set(&name, Some(keys("p1", "", "", 3000)));
        assert!(held.before(&name, at(NOW)) == Some(keys("p0", "", "", 2000)));
        held.set(&name, None);
        assert!(held.of(&name, at(NOW)).is_none());
        assert!(held.before(&name, at(NOW)) == Some(keys("p1", "", "", 3000)));
        assert!(held.before(&name, at(3000)).is_none(), "over meanwhile");
        held.forget(&name);
        assert!(held.before(&name, at(NOW)).is_none());
    }

    #[test]
    fn what_is_kept_is_not_told() {
        let kept = Kept {
            psk: b"secret".into(),
            ..Kept::default()
        };
        assert_eq!(format!("{kept:?}"), "Kept { .. }");
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
            let refused = try_named(&before, &wanted, None).err().expect("refused");
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
        assert!(again.over(at(1999)).is_empty());
        assert_eq!(again.over(at(2000)), [name]);
    }

    #[test]
    fn keys_that_came_in_place_of_expired_ones_are_not_ended() {
        let of = |until| has_expired(&host("p2", "d2", "", until));
        let now = SystemTime::UNIX_EPOCH.elapsed().expect("after 1970");
        let later = now.as_secs().cast_signed() + 60;
        assert!(of(1));
        assert!(!of(later), "a rekey since");
        assert!(!of(0), "ended since");
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
