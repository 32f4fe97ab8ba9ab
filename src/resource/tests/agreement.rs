//! Tests of reconciling SPDK and the store after one of them refused a change or a panic cut it off.

use std::sync::atomic::Ordering;

use super::memories::{Memories, Place, Step};
use super::*;
use crate::reconcile::Reconciler;
use crate::state::{self, Entry};

#[tokio::test(start_paused = true)]
async fn content_is_destroyed_only_for_a_change_that_is_stored() {
    let place = Place::new(false);
    place.create("a", 64).await.unwrap();
    place.store.fail_after(0, 1);
    let error = place.update("a", 128).await.unwrap_err();
    assert!(error.to_string().contains("was not made"), "{error}");
    assert_eq!(place.sizes("a").await, [Some(64); 3]);
    assert_eq!(place.spdk.destroyed.load(Ordering::Relaxed), 0);
    let made = place.update("a", 128).await.unwrap();
    assert_eq!(place.volumes.get("a"), Ok(made));
    assert_eq!(place.sizes("a").await, [Some(128); 3]);
    assert_eq!(place.spdk.destroyed.load(Ordering::Relaxed), 1);
    assert_eq!(place.shared.conditions.all(), []);
}

#[tokio::test(start_paused = true)]
async fn a_stored_change_that_spdk_refuses_is_taken_back_in_the_store() {
    let place = Place::new(false);
    place.create("a", 64).await.unwrap();
    place.spdk.fails_in(Step::Update);
    let error = place.update("a", 128).await.unwrap_err();
    assert!(error.to_string().contains("asked to fail"), "{error}");
    assert_eq!(place.sizes("a").await, [Some(64); 3]);

    // The rollback in the store fails too: the error says what a restart may find.
    place.spdk.fails_in(Step::Update);
    place.store.fail_after(1, 1);
    let error = place.update("a", 128).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "{error}");
    for part in ["asked to fail", "no space left", "restart"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    assert_eq!(place.sizes("a").await, [Some(128), Some(64), Some(64)]);
    place.settle().await;
    assert_eq!(place.sizes("a").await, [Some(64); 3]);
    assert_eq!(place.spdk.destroyed.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn a_stored_change_that_is_cut_off_is_made() {
    let place = Place::new(false);
    place.create("a", 64).await.unwrap();
    place.spdk.panics_in(Step::Update);
    place.update("a", 128).await.unwrap_err();
    assert_eq!(place.sizes("a").await, [Some(128), Some(128), Some(64)]);
    for size in [64, 128] {
        let taken = place.create("b", size).await.unwrap_err();
        assert!(matches!(taken, Error::AlreadyExists { .. }), "{taken}");
    }
    place.settle().await;
    assert_eq!(place.sizes("a").await, [Some(128); 3]);
    place.create("b", 64).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_kind_is_told_when_no_rollback_can_follow() {
    let place = with_an_open_rollback().await;
    let settled = || place.spdk.settled.load(Ordering::Relaxed);
    assert_eq!(settled(), 0, "the rollback is still open");
    place.settle().await;
    assert_eq!(settled(), 1);
    place.store.fail_after(0, 1);
    place.update("a", 128).await.unwrap_err();
    assert_eq!(settled(), 2, "it is rolled back");
    place.update("a", 128).await.unwrap();
    assert_eq!(settled(), 3, "it is durable");
    let place = Place::new(false);
    place.create("a", 64).await.unwrap();
    place.update("a", 128).await.unwrap();
    assert_eq!(place.spdk.settled.load(Ordering::Relaxed), 1, "foreseen");
}

/// Creates a pending rollback: SPDK has 128 blocks, the store and memory have 64.
async fn with_an_open_rollback() -> Place {
    let place = Place::new(true);
    place.create("a", 64).await.unwrap();
    place.store.fail_after(0, 1);
    // The update succeeds, its rollback fails.
    place.spdk.then_fails.lock().push(Step::Update);
    let error = place.update("a", 128).await.unwrap_err();
    assert!(error.to_string().contains("no space left"), "{error}");
    assert_eq!(place.sizes("a").await, [Some(64), Some(64), Some(128)]);
    place
}

#[tokio::test(start_paused = true)]
async fn an_update_over_an_open_rollback_begins_after_it() {
    let place = with_an_open_rollback().await;
    // Claims of the version in SPDK are still held.
    let taken = place.create("b", 128).await.unwrap_err();
    assert!(matches!(taken, Error::AlreadyExists { .. }), "{taken}");
    place.spdk.fails_in(Step::Update);
    let error = place.update("a", 256).await.unwrap_err();
    assert!(error.to_string().contains("asked to fail"), "{error}");
    assert_eq!(place.sizes("a").await, [Some(64), Some(64), Some(128)]);
    place.update("a", 256).await.unwrap();
    assert_eq!(place.sizes("a").await, [Some(256); 3]);
    place.settle().await;
    assert_eq!(place.sizes("a").await, [Some(256); 3]);
    assert_eq!(place.shared.conditions.all(), []);
    place.create("b", 128).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_repeated_create_over_an_open_rollback_ends_it() {
    let place = with_an_open_rollback().await;
    place.create("a", 64).await.unwrap();
    assert_eq!(place.sizes("a").await, [Some(64); 3]);
}

#[tokio::test(start_paused = true)]
async fn a_delete_over_an_open_rollback_leaves_nothing_in_spdk() {
    let place = with_an_open_rollback().await;
    place.delete("a").await.unwrap();
    assert_eq!(place.sizes("a").await, [None; 3]);
    place.settle().await;
    place.create("b", 128).await.unwrap();
    place.create("a", 64).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_delete_whose_end_is_not_stored_says_that_it_is_under_way() {
    let place = Place::new(true);
    place.create("a", 64).await.unwrap();
    place.store.fail_after(1, 1);
    let error = place.delete("a").await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::ResourceExhausted(_)), "{text}");
    assert!(text.contains("is being deleted"), "{text}");
    assert!(text.contains("could not be stored yet"), "{text}");
    assert!(!text.contains("not made"), "{text}");
    place.settle().await;
    assert_eq!(place.sizes("a").await, [None; 3]);
}

#[tokio::test(start_paused = true)]
async fn a_failed_delete_that_the_store_cannot_take_back_says_so() {
    let place = Place::new(true);
    place.create("a", 64).await.unwrap();
    place.spdk.fails_in(Step::Remove);
    place.store.fail_after(1, 1);
    let error = place.delete("a").await.unwrap_err();
    for part in ["asked to fail", "no space left", "restart"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    place.settle().await;
    assert_eq!(place.sizes("a").await, [Some(64); 3]);
}

#[tokio::test(start_paused = true)]
async fn a_create_that_is_cut_off_leaves_nothing() {
    let of_the_change = |spdk: &Memories| spdk.panics_in(Step::Ensure);
    let of_a_step = |spdk: &Memories| spdk.panics_in_spdk.lock().push(Step::Ensure);
    for panics in [of_the_change, of_a_step] {
        let place = Place::new(true);
        panics(&place.spdk);
        let error = place.create("a", 64).await.unwrap_err();
        let status = tonic::Status::from(error);
        assert_eq!(status.code(), tonic::Code::Internal, "{status}");
        assert!(status.message().contains("fault of the server"), "{status}");
        assert_eq!(place.spdk.count("a"), Some(64), "SPDK had it by then");
        let condition = place.shared.conditions.of(&Place::key("a"));
        assert!(matches!(condition, Condition::Deleting { .. }));
        place.settle().await;
        assert_eq!(place.sizes("a").await, [None; 3]);
        assert_eq!(place.shared.conditions.all(), []);

        // A repeated create reconciles at once, without waiting for the queue.
        panics(&place.spdk);
        place.create("a", 64).await.unwrap_err();
        place.create("a", 128).await.unwrap();
        assert_eq!(place.sizes("a").await, [Some(128); 3]);
        place.settle().await;
        assert_eq!(place.sizes("a").await, [Some(128); 3]);
        assert_eq!(place.shared.conditions.all(), []);
    }
}

#[tokio::test(start_paused = true)]
async fn a_delete_that_is_cut_off_stays_one_and_waits_for_nothing() {
    let place = Place::new(true);
    place.create("a", 64).await.unwrap();
    let prepared = place.spdk.prepared.load(Ordering::Relaxed);
    // The first panic hits the call, the second one a retry.
    place.spdk.panics_in(Step::Remove);
    place.spdk.panics_in(Step::Remove);
    place.delete("a").await.unwrap_err();
    let condition = place.shared.conditions.of(&Place::key("a"));
    assert!(matches!(condition, Condition::Deleting { .. }));
    assert!(
        !place
            .shared
            .conditions
            .set_pending(&Place::key("a"), "a fault")
    );
    let condition = place.shared.conditions.of(&Place::key("a"));
    assert!(matches!(condition, Condition::Deleting { .. }));
    place.settle().await;
    assert_eq!(place.sizes("a").await, [None; 3]);
    assert_eq!(place.spdk.prepared.load(Ordering::Relaxed), prepared);
    assert_eq!(place.shared.conditions.all(), []);
}

#[tokio::test(start_paused = true)]
async fn no_condition_is_kept_of_what_has_no_record() {
    let place = Place::new(true);
    place
        .shared
        .conditions
        .set_pending(&Place::key("a"), "a fault");
    place.shared.queue.put(&Place::key("a"));
    place.settle().await;
    assert_eq!(place.shared.conditions.all(), []);
}

#[tokio::test(start_paused = true)]
async fn a_stored_record_that_cannot_be_used_keeps_its_name_until_it_is_deleted() {
    let place = Place::new(true);
    let entry = |key: &str, object: Vec<u8>| Entry {
        key: key.to_owned(),
        kind: "opi_api.storage.v1.MallocVolume".to_owned(),
        created: 1,
        revision: 1,
        deleting: false,
        wanted: Vec::new(),
        object,
    };
    let puts = [
        entry("mallocVolumes/a", vec![0xff]),
        entry("otherVolumes/b", Vec::new()),
    ];
    let puts = puts.into_iter().map(state::Change::Put).collect();
    place.store.commit(puts, Vec::new()).await.unwrap();
    let kinds: Vec<Arc<dyn Records>> = vec![Arc::clone(&place.volumes) as _];
    let reconciler = Reconciler::new(&place.shared, kinds);
    assert!(reconciler.load(|_| false).await.unwrap().is_empty());
    let told = || place.shared.unusable.all();
    let keys: Vec<_> = told().into_iter().map(|(key, _)| key.to_string()).collect();
    assert_eq!(keys, ["mallocVolumes/a", "otherVolumes/b"]);
    assert!(told()[1].1.reason.contains("unknown"), "{:?}", told());
    let error = place.create("a", 64).await.unwrap_err();
    assert!(matches!(error, Error::AlreadyExists { .. }), "{error}");
    assert!(error.to_string().contains("cannot be used"), "{error}");
    place.delete("a").await.unwrap();
    place.create("a", 64).await.unwrap();
    assert_eq!(place.sizes("a").await, [Some(64); 3]);
    assert_eq!(told().len(), 1);
}
