use super::*;
use crate::machine::tree::Tree;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const NODE: &str = "/sys/devices/system/node/node";
const DEVICE: &str = "/sys/bus/pci/devices/0000:01:00.0";

fn machine() -> Tree {
    let tree = Tree::new();
    for (node, cores) in [(0, "0-1"), (1, "2-3")] {
        tree.write(&format!("{NODE}{node}/cpulist"), cores);
        let pool = format!("{NODE}{node}/hugepages/hugepages-2048kB");
        tree.write(&format!("{pool}/nr_hugepages"), "16");
        tree.write(&format!("{pool}/free_hugepages"), "16");
    }
    tree.write("/proc/sys/fs/aio-max-nr", "65536");
    tree.dir("/run");
    tree.write(
        "/proc/self/mountinfo",
        "30 1 0:30 / /dev/hugepages rw - hugetlbfs none rw,pagesize=2M\n",
    );
    tree.dir("/sys/kernel/iommu_groups/7");
    tree.dir("/sys/bus/pci/drivers/vfio-pci");
    tree.dir("/sys/module/vfio_iommu_type1");
    tree.dir("/sys/bus/pci/drivers/nvme");
    tree.write(&format!("{DEVICE}/class"), "0x010802");
    tree.write(&format!("{DEVICE}/driver_override"), "(null)");
    tree.link(&format!("{DEVICE}/driver"), "/sys/bus/pci/drivers/nvme");
    tree
}

fn wanted() -> Wanted {
    Wanted {
        pages: None,
        page_kib: 2048,
        cores: "0".parse().expect("cores"),
        bind: Vec::new(),
        driver: "vfio-pci".to_owned(),
        release: Vec::new(),
        aio: None,
    }
}

fn shown(tree: &Tree, wanted: &Wanted) -> Vec<String> {
    let steps = plan(&tree.machine(), wanted).expect("a plan");
    steps.iter().map(Step::to_string).collect()
}

#[test]
fn pages_go_to_the_nodes_of_the_cores_or_to_those_that_are_named() {
    let tree = machine();
    let file = |node: u32| format!("{NODE}{node}/hugepages/hugepages-2048kB/nr_hugepages");
    let with = |pages: &str, cores: &str| Wanted {
        pages: Some(pages.parse().expect("pages")),
        cores: cores.parse().expect("cores"),
        ..wanted()
    };
    let echo = |pages: u32, node| format!("echo {pages} > {}", file(node));
    assert_eq!(shown(&tree, &with("64", "0")), [echo(64, 0)]);
    assert_eq!(shown(&tree, &with("64", "1-2")), [echo(32, 0), echo(32, 1)]);
    assert_eq!(shown(&tree, &with("node1=20", "0")), [echo(20, 1)]);
    assert!(shown(&tree, &with("16", "0")).is_empty());
    let refused = plan(&tree.machine(), &with("node5=1", "0")).unwrap_err();
    assert!(
        refused.contains("node5 has no hugepages of 2M; there are: node0 2M"),
        "{refused}"
    );
    assert!("node0".parse::<Pages>().unwrap_err().contains("node0=512"));
}

#[test]
fn a_second_run_has_nothing_to_do_and_undo_brings_back_how_it_was() {
    let tree = machine();
    let machine = tree.machine();
    let wanted = Wanted {
        pages: Some(Pages::Together(64)),
        aio: Some(1 << 20),
        ..wanted()
    };
    let steps = plan(&machine, &wanted).unwrap();
    let mut told = 0;
    apply(&machine, &[], &steps, |_| told += 1).unwrap();
    assert_eq!(told, 2);
    assert_eq!(machine.number("/proc/sys/fs/aio-max-nr"), Some(1 << 20));
    assert!(plan(&machine, &wanted).unwrap().is_empty());
    undo(&machine, true, |_| {}).unwrap();
    assert_eq!(machine.number("/proc/sys/fs/aio-max-nr"), Some(1 << 20));
    undo(&machine, false, |_| {}).unwrap();
    assert_eq!(machine.number("/proc/sys/fs/aio-max-nr"), Some(65536));
    let pages = "/sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages";
    assert_eq!(machine.number(pages), Some(16));
    assert!(!machine.has(JOURNAL));
}

/// An interruption between journaling and running a step.
#[test]
fn a_run_that_was_cut_off_is_taken_back_too() {
    let tree = machine();
    let machine = tree.machine();
    let aio = "/proc/sys/fs/aio-max-nr";
    let set = |value| Step::Set {
        file: aio.to_owned(),
        value,
    };
    apply(&machine, &[], &[set(100_000)], |_| {}).unwrap();
    let mut journal = Journal::open(&machine).unwrap();
    journal.note(set(200_000).undo(&machine)).unwrap();
    assert!(Journal::open(&machine).is_err_and(|reason| reason.contains("under way")));
    drop(journal);
    undo(&machine, false, |_| {}).unwrap();
    assert_eq!(machine.number(aio), Some(65536));
}

/// Emulates the kernel: a probe binds a device to the driver of its override, or to its own.
fn kernel(tree: &Tree, ended: Arc<AtomicBool>) -> std::thread::JoinHandle<()> {
    let [probe, over, link, drivers] = [
        "/sys/bus/pci/drivers_probe",
        &format!("{DEVICE}/driver_override"),
        &format!("{DEVICE}/driver"),
        "/sys/bus/pci/drivers",
    ]
    .map(|file| tree.path(file));
    std::thread::spawn(move || {
        while !ended.load(Ordering::Acquire) {
            if std::fs::read_to_string(&probe).is_ok_and(|text| text == "0000:01:00.0\n") {
                std::fs::remove_file(&probe).expect("removed");
                let wanted = std::fs::read_to_string(&over).expect("a file");
                let driver = match wanted.trim() {
                    "" => "nvme",
                    driver => driver,
                };
                std::fs::remove_file(&link).expect("removed");
                std::os::unix::fs::symlink(drivers.join(driver), &link).expect("a link");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    })
}

#[test]
fn a_device_is_bound_and_given_back() {
    let tree = machine();
    let ended = Arc::new(AtomicBool::new(false));
    let thread = kernel(&tree, Arc::clone(&ended));
    let machine = tree.machine();
    let bind = Wanted {
        bind: vec!["01:00.0".parse().unwrap()],
        ..wanted()
    };
    let address = &bind.bind[0];
    apply(&machine, &[], &plan(&machine, &bind).unwrap(), |_| {}).unwrap();
    assert_eq!(address.driver(&machine).as_deref(), Some("vfio-pci"));
    assert_eq!(
        tree.read("/sys/bus/pci/drivers/nvme/unbind"),
        "0000:01:00.0\n"
    );
    assert!(plan(&machine, &bind).unwrap().is_empty());
    let release = Wanted {
        release: bind.bind.clone(),
        ..wanted()
    };
    apply(&machine, &[], &plan(&machine, &release).unwrap(), |_| {}).unwrap();
    let back = poll(|| address.driver(&machine).as_deref() == Some("nvme"));
    assert!(back && plan(&machine, &release).unwrap().is_empty());
    ended.store(true, Ordering::Release);
    thread.join().unwrap();
}

fn poll(check: impl Fn() -> bool) -> bool {
    let end = Instant::now() + BINDING;
    while !check() {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

#[test]
fn a_device_that_is_bound_already_gets_the_module_of_the_iommu_too() {
    let tree = machine();
    std::fs::remove_dir(tree.machine().path("/sys/module/vfio_iommu_type1")).unwrap();
    let bind = Wanted {
        bind: vec!["01:00.0".parse().unwrap()],
        ..wanted()
    };
    assert_eq!(shown(&tree, &bind)[0], "modprobe vfio_iommu_type1");
    std::fs::remove_file(tree.machine().path(format!("{DEVICE}/driver"))).unwrap();
    tree.link(&format!("{DEVICE}/driver"), "/sys/bus/pci/drivers/vfio-pci");
    assert_eq!(shown(&tree, &bind), ["modprobe vfio_iommu_type1"]);
}

#[test]
fn a_device_that_is_used_unknown_or_not_alone_in_its_group_is_left_alone() {
    let tree = machine();
    let machine = tree.machine();
    let bind = |address: &str| Wanted {
        bind: vec![address.parse().unwrap()],
        ..wanted()
    };
    let why = |wanted: &Wanted| plan(&machine, wanted).unwrap_err();
    let unknown = why(&bind("09:00.0"));
    assert!(
        unknown.ends_with("0000:09:00.0; NVMe devices: 0000:01:00.0"),
        "{unknown}"
    );

    mount_the_disk(&tree);
    assert_eq!(
        why(&bind("01:00.0")),
        "0000:01:00.0 is left alone: nvme0n1 is mounted at /"
    );
    tree.write("/proc/self/mountinfo", "");

    tree.write(&format!("{DEVICE}/class"), "0x020000");
    assert_eq!(
        why(&bind("01:00.0")),
        "0000:01:00.0 is left alone: it is no storage controller"
    );
    tree.write(&format!("{DEVICE}/class"), "0x010802");

    tree.dir("/sys/kernel/iommu_groups/7/devices/0000:02:00.0");
    tree.link(
        &format!("{DEVICE}/iommu_group"),
        "/sys/kernel/iommu_groups/7",
    );
    let other = "/sys/bus/pci/devices/0000:02:00.0";
    tree.write(&format!("{other}/class"), "0x020000");
    tree.link(&format!("{other}/driver"), "/sys/bus/pci/drivers/e1000e");
    let reason = why(&bind("01:00.0"));
    assert!(
        reason.contains("0000:02:00.0 (driver e1000e) is in its IOMMU group"),
        "{reason}"
    );
    // Setup itself takes no network interface.
    assert!(
        reason.ends_with(&format!(
            "echo 0000:02:00.0 > {other}/driver/unbind once nothing uses it"
        )),
        "{reason}"
    );
    tree.write(&format!("{other}/class"), "0x010802");
    let reason = why(&bind("01:00.0"));
    assert!(
        reason.ends_with("opi-spdk setup --bind 0000:01:00.0,0000:02:00.0"),
        "{reason}"
    );
    // Without an IOMMU's groups no other device matters, and vfio shares none with uio.
    let uio = Wanted {
        driver: "uio_pci_generic".to_owned(),
        ..bind("01:00.0")
    };
    assert!(plan(&machine, &uio).is_ok());
    let driver = |name: &str| {
        tree.link(
            &format!("{other}/driver"),
            &format!("/sys/bus/pci/drivers/{name}"),
        );
    };
    driver("uio_pci_generic");
    assert!(why(&bind("01:00.0")).contains("(driver uio_pci_generic)"));
    for good in ["vfio-pci", "pci-stub", "pcieport"] {
        driver(good);
        assert!(plan(&machine, &bind("01:00.0")).is_ok(), "{good}");
    }
    driver("nvme");

    std::fs::remove_dir_all(tree.path("/sys/kernel/iommu_groups")).unwrap();
    assert!(why(&bind("01:00.0")).contains("vfio-pci needs an IOMMU"));
    assert_eq!(tree.read("/sys/bus/pci/drivers_probe"), "");
}

#[test]
fn pages_beyond_the_free_memory_are_refused_and_a_part_of_them_is_given_back() {
    let tree = machine();
    let with = |pages: &str| Wanted {
        pages: Some(pages.parse().unwrap()),
        ..wanted()
    };
    tree.write(
        &format!("{NODE}0/meminfo"),
        "Node 0 MemTotal: 9 kB\nNode 0 MemFree:  48576 kB\nNode 0 Inactive(file): 1000000 kB\n",
    );
    assert_eq!(plan(&tree.machine(), &with("476")).unwrap().len(), 1);
    let refused = plan(&tree.machine(), &with("477")).unwrap_err();
    assert!(
        refused.contains("node0 has 1024 MiB free, and 922 MiB more"),
        "{refused}"
    );

    // A kernel that grants fewer pages than requested: the file keeps its value.
    let file = crate::machine::hugepages::file(0, 2048);
    let step = Step::Set {
        file: file.clone(),
        value: 99,
    };
    let reason = step.unfinished(&tree.machine());
    assert!(
        reason.starts_with("only 16 of 99 pages could be had"),
        "{reason}"
    );
    std::fs::remove_file(tree.path(&file)).unwrap();
    tree.dir(&file);
    let failed = apply(&tree.machine(), &[], &[step], |_| {}).unwrap_err();
    assert!(failed.contains("--undo takes it back"), "{failed}");
}

/// What SIGKILL leaves between unbind and probe: neither a driver nor an override.
fn half_given() -> Tree {
    let tree = machine();
    std::fs::remove_file(tree.path(&format!("{DEVICE}/driver"))).unwrap();
    tree
}

#[test]
fn a_device_that_was_given_back_half_way_is_released() {
    let tree = half_given();
    let machine = tree.machine();
    let release = Wanted {
        release: vec!["01:00.0".parse().unwrap()],
        ..wanted()
    };
    let steps = plan(&machine, &release).unwrap();
    assert_eq!(steps.len(), 1);
    // No kernel driver takes the device; the probe is complete nevertheless.
    let start = Instant::now();
    apply(&machine, &[], &steps, |_| {}).unwrap();
    assert!(start.elapsed() < BINDING);
    assert_eq!(tree.read("/sys/bus/pci/drivers_probe"), "0000:01:00.0\n");
    let remark = steps[0].remark(&machine).unwrap();
    assert!(remark.starts_with("0000:01:00.0 has no driver"), "{remark}");
    tree.link(&format!("{DEVICE}/driver"), "/sys/bus/pci/drivers/nvme");
    assert_eq!(steps[0].remark(&machine), None);
    assert!(plan(&machine, &release).unwrap().is_empty());
}

fn give() -> Step {
    Step::Give {
        address: "01:00.0".parse().unwrap(),
    }
}

#[test]
fn an_undo_that_was_cut_off_in_a_device_is_completed() {
    for driver in [None, Some("vfio-pci")] {
        let tree = half_given();
        let machine = tree.machine();
        if let Some(driver) = driver {
            let drivers = format!("/sys/bus/pci/drivers/{driver}");
            tree.link(&format!("{DEVICE}/driver"), &drivers);
        }
        Journal::open(&machine).unwrap().note(give()).unwrap();
        undo(&machine, false, |_| {}).unwrap();
        assert_eq!(tree.read("/sys/bus/pci/drivers_probe"), "0000:01:00.0\n");
        assert!(!machine.has(JOURNAL));
    }
}

fn mount_the_disk(tree: &Tree) {
    tree.write(&format!("{DEVICE}/nvme/nvme0/nvme0n1/dev"), "259:0");
    tree.link(
        "/sys/class/block/nvme0n1",
        &format!("{DEVICE}/nvme/nvme0/nvme0n1"),
    );
    tree.write(
        "/proc/self/mountinfo",
        "20 1 259:0 / / rw - ext4 /dev/root rw\n",
    );
}

#[test]
fn a_device_that_was_never_taken_does_not_keep_the_rest_from_being_undone() {
    let tree = machine();
    let machine = tree.machine();
    mount_the_disk(&tree);
    let aio = Step::Set {
        file: "/proc/sys/fs/aio-max-nr".to_owned(),
        value: 1000,
    };
    let mut journal = Journal::open(&machine).unwrap();
    journal.note(aio.clone()).unwrap();
    journal.note(give()).unwrap();
    // A dry run needs no lock.
    let mut shown = Vec::new();
    undo(&machine, true, |step| shown.push(step.clone())).unwrap();
    assert_eq!(shown, [aio]);
    drop(journal);
    undo(&machine, false, |_| {}).unwrap();
    assert_eq!(machine.number("/proc/sys/fs/aio-max-nr"), Some(1000));
    assert_eq!(tree.read("/sys/bus/pci/drivers_probe"), "");
    assert!(!machine.has(JOURNAL));
}

#[test]
fn a_device_that_was_bound_and_released_is_left_alone_by_undo() {
    let tree = machine();
    let ended = Arc::new(AtomicBool::new(false));
    let thread = kernel(&tree, Arc::clone(&ended));
    let machine = tree.machine();
    let address: Address = "01:00.0".parse().unwrap();
    let bind = Wanted {
        bind: vec![address.clone()],
        ..wanted()
    };
    let release = Wanted {
        release: vec![address.clone()],
        ..wanted()
    };
    apply(&machine, &[], &plan(&machine, &bind).unwrap(), |_| {}).unwrap();
    apply(&machine, &[], &plan(&machine, &release).unwrap(), |_| {}).unwrap();
    assert!(poll(|| address.driver(&machine).as_deref() == Some("nvme")));
    ended.store(true, Ordering::Release);
    thread.join().unwrap();
    // In use again.
    mount_the_disk(&tree);
    let mut told = Vec::new();
    undo(&machine, false, |step| told.push(step.clone())).unwrap();
    assert_eq!(told, []);
    assert_eq!(address.driver(&machine).as_deref(), Some("nvme"));
    assert!(!machine.has(JOURNAL));
}
