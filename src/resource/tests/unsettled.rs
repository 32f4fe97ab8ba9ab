//! Tests of changes whose effects are unknown: SPDK went on after a timeout, or did not take a change back.

use super::memories::{Memories, Place, Step};
use super::*;

/// An update of `a` from 64 to 128 blocks that SPDK has made, and that was answered as failed.
async fn with_an_unsettled_update() -> Place {
    let place = Place::new(true);
    place.create("a", 64).await.unwrap();
    place.spdk.unsettles_in(Step::Update);
    let error = place.update("a", 128).await.unwrap_err();
    assert_eq!(
        tonic::Status::from(error).code(),
        tonic::Code::DeadlineExceeded
    );
    assert_eq!(place.sizes("a").await, [Some(64), Some(64), Some(128)]);
    let condition = place.shared.conditions.of(&Place::key("a"));
    assert!(matches!(condition, Condition::Pending(_)), "{condition:?}");
    place
}

#[tokio::test(start_paused = true)]
async fn what_a_failed_update_left_is_withdrawn() {
    let place = with_an_unsettled_update().await;
    // SPDK may have the target: its claims are held, and those of the object.
    for size in [64, 128] {
        let taken = place.create("b", size).await.unwrap_err();
        assert!(matches!(taken, Error::AlreadyExists { .. }), "{taken}");
    }
    place.spdk.fails_in(Step::Withdraw);
    place.settle().await;
    assert_eq!(place.sizes("a").await, [Some(64); 3]);
    assert_eq!(place.shared.conditions.all(), []);
    place.create("b", 128).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_update_over_what_another_left_begins_after_it() {
    let place = with_an_unsettled_update().await;
    place.spdk.fails_in(Step::Withdraw);
    let error = place.update("a", 256).await.unwrap_err();
    assert!(error.to_string().contains("asked to fail"), "{error}");
    place.update("a", 256).await.unwrap();
    assert_eq!(place.sizes("a").await, [Some(256); 3]);
    place.settle().await;
    assert_eq!(place.sizes("a").await, [Some(256); 3]);
    place.create("b", 128).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_update_may_be_the_remedy_for_an_object_that_cannot_be_as_recorded() {
    let place = with_an_unsettled_update().await;
    // The queue could not ensure it, only withdraw.
    for _ in 0..1_000 {
        place.spdk.fails_in(Step::Ensure);
    }
    place.update("a", 256).await.unwrap();
    assert_eq!(place.sizes("a").await, [Some(256); 3]);
}

#[tokio::test(start_paused = true)]
async fn a_delete_takes_what_an_update_left_with_it() {
    let place = with_an_unsettled_update().await;
    place.delete("a").await.unwrap();
    assert_eq!(place.sizes("a").await, [None; 3]);
    place.settle().await;
    place.create("b", 128).await.unwrap();
    place.create("a", 64).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_update_that_a_panic_cuts_off_is_withdrawn_too() {
    let place = Place::new(true);
    place.create("a", 64).await.unwrap();
    place.spdk.panics_in(Step::Update);
    place.update("a", 128).await.unwrap_err();
    place.create("b", 128).await.unwrap_err();
    place.settle().await;
    assert_eq!(place.sizes("a").await, [Some(64); 3]);
    place.create("b", 128).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_stored_update_that_is_unsettled_is_taken_back_in_the_store_and_withdrawn() {
    let place = Place::new(false);
    place.create("a", 64).await.unwrap();
    place.spdk.unsettles_in(Step::Update);
    place.update("a", 128).await.unwrap_err();
    assert_eq!(place.sizes("a").await, [Some(64), Some(64), Some(128)]);
    place.create("b", 128).await.unwrap_err();
    place.settle().await;
    assert_eq!(place.sizes("a").await, [Some(64); 3]);
    place.create("b", 128).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_create_that_is_unsettled_leaves_nothing() {
    let place = Place::new(true);
    place.spdk.unsettles_in(Step::Ensure);
    let error = place.create("a", 64).await.unwrap_err();
    assert_eq!(
        tonic::Status::from(error).code(),
        tonic::Code::DeadlineExceeded
    );
    assert_eq!(place.spdk.count("a"), Some(64), "SPDK had it by then");
    let condition = place.shared.conditions.of(&Place::key("a"));
    assert!(matches!(condition, Condition::Deleting { .. }));
    place.settle().await;
    assert_eq!(place.sizes("a").await, [None; 3]);
    assert_eq!(place.shared.conditions.all(), []);
}

#[tokio::test(start_paused = true)]
async fn a_delete_that_is_unsettled_goes_on_and_nothing_is_made_anew() {
    let unsettles = |spdk: &Memories| spdk.unsettles_in(Step::Remove);
    let panics = |spdk: &Memories| spdk.panics_in_spdk.lock().push(Step::Remove);
    for fails in [unsettles, panics] {
        let place = Place::new(true);
        place.create("a", 64).await.unwrap();
        fails(&place.spdk);
        let error = place.delete("a").await.unwrap_err();
        assert!(error.is_unsettled(), "{error}");
        let condition = place.shared.conditions.of(&Place::key("a"));
        assert!(matches!(condition, Condition::Deleting { .. }));
        let error = place.update("a", 128).await.unwrap_err();
        assert!(error.to_string().contains("being deleted"), "{error}");
        place.settle().await;
        assert_eq!(place.sizes("a").await, [None; 3]);
        assert_eq!(place.shared.conditions.all(), []);
        place.create("a", 128).await.unwrap();
    }
}
