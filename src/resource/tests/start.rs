//! Tests of the order of a start: what hosts connect to comes last.

use super::durable::{Faulty, reconciler_with};
use super::*;
use crate::api::storage::nvme_controller_spec::Endpoint;
use crate::api::storage::{
    FabricsEndpoint, NvmeAddressFamily, NvmeController, NvmeControllerSpec, NvmeTransportType,
};

/// Doors to the test subsystems; notes what had been tried when each opened.
struct Doors {
    volumes: Arc<Volumes>,
    /// Volumes that SPDK had at that time.
    opened: Mutex<Vec<BTreeSet<String>>>,
}

impl Kind for Arc<Doors> {
    type Object = NvmeController;

    const STAGE: Stage = Stage::Door;

    fn check(&self, _: &NvmeController, _: &mut Violations) {}

    fn claims(&self, _: &Name, _: &NvmeController) -> Claims {
        Claims::new()
    }

    async fn ensure(
        &self,
        _: &CallContext,
        _: &Name,
        wanted: NvmeController,
    ) -> Result<NvmeController, Error> {
        let there = self.volumes.made.lock().clone();
        self.opened.lock().push(there);
        Ok(wanted)
    }

    async fn update(
        &self,
        _: &CallContext,
        _: &Name,
        change: Change<NvmeController>,
    ) -> Result<NvmeController, Error> {
        Ok(change.wanted)
    }

    async fn withdraw(
        &self,
        _: &CallContext,
        _: &Name,
        _: &Change<NvmeController>,
    ) -> Result<(), Error> {
        Ok(())
    }

    async fn remove(&self, _: &CallContext, _: &Name, _: &NvmeController) -> Result<(), Error> {
        Ok(())
    }

    async fn stats(&self, _: &Name, _: &NvmeController) -> Result<VolumeStats, Error> {
        Ok(VolumeStats::default())
    }
}

struct House {
    world: World,
    doors: Arc<Doors>,
    controllers: Arc<Collection<Arc<Doors>>>,
}

impl House {
    fn over(store: &Arc<Faulty>, engine: Volumes) -> Self {
        let shared = Shared::with(Arc::clone(store) as Arc<dyn Store>);
        let world = World::over(shared, engine);
        let doors = Arc::new(Doors {
            volumes: Arc::clone(&world.engine),
            opened: Mutex::default(),
        });
        Self {
            controllers: Collection::new(Arc::clone(&doors), &world.shared),
            world,
            doors,
        }
    }

    /// Creates a subsystem with a door.
    async fn subsystem_with_door(&self) {
        let nqn = "nqn.2014-08.org:s";
        self.world.subsystem("s", nqn).await.unwrap();
        let endpoint = FabricsEndpoint {
            traddr: "127.0.0.1".into(),
            trsvcid: "4420".into(),
            adrfam: NvmeAddressFamily::Ipv4.into(),
        };
        let spec = NvmeControllerSpec {
            trtype: NvmeTransportType::Tcp.into(),
            endpoint: Some(Endpoint::FabricsId(endpoint)),
            ..Default::default()
        };
        let door = NvmeController {
            spec: Some(spec),
            ..Default::default()
        };
        let request = create("nvmeSubsystems/s", "c", door);
        let call = CallContext::default();
        self.controllers.create(call, request).await.unwrap();
    }

    fn opened(&self) -> Vec<BTreeSet<String>> {
        self.doors.opened.lock().clone()
    }
}

#[tokio::test(start_paused = true)]
async fn doors_open_once_all_that_stands_behind_them_has_been_tried() {
    let store = Arc::new(Faulty::default());
    let before = House::over(&store, Volumes::default());
    before.world.shared.set_restored();
    // Created before the volume, and of no relation to it.
    before.subsystem_with_door().await;
    before.world.volume("a", of(512, 64)).await.unwrap();

    let gate = Arc::new(Gate {
        entered: Semaphore::new(0),
        may_go_on: Semaphore::new(0),
    });
    let engine = Volumes {
        gate: Some(Arc::clone(&gate)),
        ..Volumes::default()
    };
    let after = House::over(&store, engine);
    let kinds = reconciler_with(&after.world, [Arc::clone(&after.controllers) as _]);
    let names = kinds.load(|_| false).await.unwrap();
    assert_eq!(names.len(), 3);
    let replay = tokio::spawn(async move { kinds.replay(&names).await });
    gate.entered.acquire().await.unwrap().forget();
    assert_eq!(after.opened(), [], "a volume is still being tried");
    gate.may_go_on.add_permits(1);
    replay.await.unwrap();
    assert_eq!(after.opened(), [BTreeSet::from(["a".to_owned()])]);
}

#[tokio::test(start_paused = true)]
async fn a_door_does_not_wait_for_what_cannot_be_there() {
    let store = Arc::new(Faulty::default());
    let before = House::over(&store, Volumes::default());
    before.world.shared.set_restored();
    before.world.volume("a", of(512, 64)).await.unwrap();
    before.subsystem_with_door().await;

    let after = House::over(&store, Volumes::default());
    after.world.engine.fails.store(true, Ordering::Relaxed);
    let kinds = reconciler_with(&after.world, [Arc::clone(&after.controllers) as _]);
    let names = kinds.load(|_| false).await.unwrap();
    kinds.replay(&names).await;
    assert_eq!(after.opened(), [BTreeSet::new()]);
    assert_eq!(after.world.shared.conditions.all().len(), 1);
}

#[tokio::test]
async fn a_change_waits_for_the_replay_or_is_told_of_it() {
    let store = Arc::new(Faulty::default());
    let house = House::over(&store, Volumes::default());
    let volumes = &house.world.volumes;
    let call = CallContext::within(Duration::from_millis(50));
    let early = volumes
        .create(call, create("", "a", of(512, 64)))
        .await
        .unwrap_err();
    assert!(early.to_string().contains("has just started"), "{early}");
    let status = tonic::Status::from(early);
    assert_eq!(status.code(), tonic::Code::Unavailable);
    let waiting = volumes.create(CallContext::default(), create("", "a", of(512, 64)));
    tokio::pin!(waiting);
    assert!(futures_util::poll!(waiting.as_mut()).is_pending());
    house.world.shared.set_restored();
    waiting.await.unwrap();
}
