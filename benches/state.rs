//! The store of records compared with its file system: time of a commit and of an fsync, commits per second with
//! concurrent callers, and the influence of many records.
//!
//! `cargo bench --bench state [-- DIR]`: uses a new directory in DIR, by default the directory for temporary files.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use opi_spdk::state::{Change, Disk, Entry, StateKey, Store};

const ROUNDS: usize = 300;

/// Duration of the run with concurrent callers.
const LOAD: Duration = Duration::from_secs(2);

fn put(key: String, revision: u64) -> Change {
    Change::Put(Entry {
        key,
        kind: "opi_api.storage.v1.NullVolume".to_owned(),
        created: revision,
        revision,
        deleting: false,
        wanted: vec![1; 60],
        object: vec![2; 100],
    })
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// Time of one fsync after writing a page.
fn fsync(dir: &Path) -> Duration {
    let mut file = File::create(dir.join("fsync")).expect("a file");
    let time = |_| {
        file.write_all(&[7; 4096]).expect("there is room");
        let begin = Instant::now();
        file.sync_data().expect("it is written");
        begin.elapsed()
    };
    median((0..ROUNDS).map(time).collect())
}

async fn one(store: &Disk, first: u64) -> Duration {
    let mut times = Vec::new();
    for revision in (first..).take(ROUNDS) {
        let key = format!("nullVolumes/one-{revision}");
        let begin = Instant::now();
        let change = vec![put(key.clone(), revision)];
        store.commit(change, vec![(key, None)]).await.expect("kept");
        times.push(begin.elapsed());
    }
    median(times)
}

async fn many(store: &Arc<Disk>, callers: u64, first: u64) -> f64 {
    let begin = Instant::now();
    let mut running = Vec::new();
    for caller in 0..callers {
        let store = Arc::clone(store);
        running.push(tokio::spawn(async move {
            let mut count = 0_u64;
            while begin.elapsed() < LOAD {
                let revision = first + caller + count * callers;
                let change = vec![put(format!("nullVolumes/many-{revision}"), revision)];
                store.commit(change, Vec::new()).await.expect("kept");
                count += 1;
            }
            count
        }));
    }
    let mut commits = 0;
    for caller in running {
        commits += caller.await.expect("it ends");
    }
    commits as f64 / begin.elapsed().as_secs_f64()
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let base = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with("--"));
    let base = base.map_or_else(std::env::temp_dir, Into::into);
    let dir = tempfile::tempdir_in(base).expect("a directory");
    let sync = fsync(dir.path());
    let syncs = 1.0 / sync.as_secs_f64();
    println!("one fsync of the file system (p50)       {sync:>12.1?}  {syncs:>9.0}/s");
    let key = StateKey::from([1; 32]);
    let store = Arc::new(Disk::open(dir.path(), &key).expect("a state"));
    let fill = |from: u64, to: u64| -> Vec<Change> {
        (from..to)
            .map(|at| put(format!("aioVolumes/{at}"), at + 1))
            .collect()
    };
    store.commit(fill(0, 100), Vec::new()).await.expect("kept");
    let few = one(&store, 1_000_000).await;
    println!("one commit, 1 caller, 100 records (p50)  {few:>12.1?}");
    let rate = many(&store, 16, 2_000_000).await;
    println!(
        "commits, 16 callers                      {rate:>12.0}/s, {:.1} times the fsyncs",
        rate / syncs
    );
    store
        .commit(fill(100, 10_000), Vec::new())
        .await
        .expect("kept");
    let most = one(&store, 9_000_000).await;
    println!("one commit, 1 caller, over 10000 (p50)   {most:>12.1?}");
    store.close().await;
    let begin = Instant::now();
    let store = Disk::open(dir.path(), &key).expect("a state");
    let records = store.scan("").await.expect("all").len();
    println!(
        "open, check and read {records} records       {:>12.1?}",
        begin.elapsed()
    );
    store.close().await;
}
