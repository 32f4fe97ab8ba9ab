//! The mailbox on a running SPDK: results, backpressure, dropped callers, panics, and calls during teardown.

mod common;

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use spdk::{CallError, Handle};
use tokio::sync::oneshot;

/// SPDK's state is global in the process, so these tests share one start and stop.
#[tokio::test(flavor = "multi_thread")]
async fn calls_reach_the_app_thread_and_answers_come_back() {
    let runtime = common::start(8).await;
    let handle = runtime.handle();
    all_recipes_run_on_one_thread_that_is_not_ours(&handle).await;
    a_recipe_may_wait_without_holding_the_reactor(&handle).await;
    a_full_mailbox_refuses_at_once_and_recovers(&handle).await;
    a_caller_that_leaves_does_not_stop_its_recipe(&handle).await;
    a_panic_in_a_recipe_is_an_error_for_its_caller_alone(&handle).await;
    thousands_of_calls_from_many_tasks_are_all_answered(&handle).await;

    let waiting = tokio::spawn({
        let handle = handle.clone();
        async move { handle.call(|_| std::future::pending::<()>()).await }
    });
    // The first call has begun once a later one has been answered.
    handle.call(|_| async {}).await.expect("answered");
    assert_eq!(runtime.stop().await, 0);
    assert_eq!(waiting.await.expect("joined"), Err(CallError::Stopped));
    assert_eq!(handle.call(|_| async {}).await, Err(CallError::Stopped));
}

async fn all_recipes_run_on_one_thread_that_is_not_ours(handle: &Handle) {
    let thread = |_| async { std::thread::current().id() };
    let first = handle.call(thread).await.expect("answered");
    assert_ne!(first, std::thread::current().id());
    assert_eq!(handle.call(thread).await.expect("answered"), first);
}

async fn a_recipe_may_wait_without_holding_the_reactor(handle: &Handle) {
    let (release, released) = oneshot::channel::<u32>();
    let waits = tokio::spawn({
        let handle = handle.clone();
        async move {
            let recipe = |_| async move {
                let local = Rc::new(released.await.expect("released"));
                *local + 1
            };
            handle.call(recipe).await
        }
    });
    handle.call(|_| async {}).await.expect("answered meanwhile");
    release.send(41).expect("it waits");
    assert_eq!(waits.await.expect("joined"), Ok(42));
}

async fn a_full_mailbox_refuses_at_once_and_recovers(handle: &Handle) {
    let begun = Arc::new(AtomicUsize::new(0));
    let (releases, waiting): (Vec<_>, Vec<_>) = (0..7)
        .map(|_| {
            let (release, released) = oneshot::channel::<()>();
            let (handle, begun) = (handle.clone(), begun.clone());
            let recipe = move |_| async move {
                begun.fetch_add(1, Ordering::SeqCst);
                released.await.is_ok()
            };
            let call = async move { handle.call(recipe).await };
            (release, tokio::spawn(call))
        })
        .unzip();
    until(|| begun.load(Ordering::SeqCst) == 7).await;
    assert_eq!(handle.call(|_| async {}).await, Err(CallError::Full));
    for release in releases {
        release.send(()).expect("it waits");
    }
    for call in waiting {
        assert_eq!(call.await.expect("joined"), Ok(true));
    }
    assert_eq!(handle.call(|_| async {}).await, Ok(()));
}

/// Yields until `condition` holds.
async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::task::yield_now().await;
    }
}

async fn a_caller_that_leaves_does_not_stop_its_recipe(handle: &Handle) {
    let (release, released) = oneshot::channel::<()>();
    let (done, is_done) = oneshot::channel::<()>();
    let begun = Arc::new(AtomicUsize::new(0));
    let caller = tokio::spawn({
        let (handle, begun) = (handle.clone(), begun.clone());
        async move {
            let recipe = move |_| async move {
                begun.store(1, Ordering::SeqCst);
                released.await.expect("released");
                done.send(()).expect("awaited");
            };
            handle.call(recipe).await
        }
    });
    until(|| begun.load(Ordering::SeqCst) == 1).await;
    caller.abort();
    assert!(caller.await.expect_err("aborted").is_cancelled());
    release.send(()).expect("the recipe still waits");
    is_done.await.expect("the recipe ran to its end");
}

async fn a_panic_in_a_recipe_is_an_error_for_its_caller_alone(handle: &Handle) {
    let recipe = |_| async { panic!("expected by this test") };
    let result: Result<(), _> = handle.call(recipe).await;
    assert_eq!(result, Err(CallError::Panicked));
    assert_eq!(handle.call(|_| async { 1 }).await, Ok(1));
}

async fn thousands_of_calls_from_many_tasks_are_all_answered(handle: &Handle) {
    let tasks: Vec<_> = (0..64_usize)
        .map(|task| {
            let handle = handle.clone();
            tokio::spawn(async move {
                for round in 0..100_usize {
                    let expected = task * 1000 + round;
                    loop {
                        match handle.call(move |_| async move { expected }).await {
                            Ok(answer) => break assert_eq!(answer, expected),
                            Err(CallError::Full) => tokio::task::yield_now().await,
                            Err(error) => panic!("{error}"),
                        }
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("every call was answered");
    }
    let stats = handle.control_stats();
    assert!(
        stats.steps >= 6400 && stats.busy >= stats.longest,
        "{stats:?}"
    );
}
