//! Records that cannot be read, cannot be written, or were not on the disk when
//! the machine stopped, and what becomes of what they own.

use std::fs;
use std::path::{Path, PathBuf};

use gantry_proto::gateway::v1 as wire;
use gantry_proto::runtime::v1 as runtime;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::workbench::{Bench, open};

fn record_file(bench: &Bench, id: &str) -> PathBuf {
    let records = bench.paths.state_of("gateway").join("containers");
    records.join(format!("{id}.json"))
}

fn config() -> wire::ContainerConfig {
    open(false, true).config.unwrap()
}

/// Puts a writable layer, an endpoint and a log of a container that does not
/// exist into the services.
fn add_orphan(bench: &Bench, id: &str) {
    let world = &bench.world;
    world.snapshots.lock().unwrap().insert(id.to_owned());
    let mut endpoints = world.endpoints.lock().unwrap();
    endpoints.insert(id.to_owned(), Vec::new());
    world.logs.lock().unwrap().insert(id.to_owned());
}

fn has_all_of(bench: &Bench, id: &str) -> bool {
    let world = &bench.world;
    world.snapshots.lock().unwrap().contains(id)
        && world.endpoints.lock().unwrap().contains_key(id)
        && world.logs.lock().unwrap().contains(id)
}

async fn check(bench: &Bench, repair: bool) -> Vec<gantry_proto::image::v1::Finding> {
    let check = wire::CheckRequest { repair };
    let checked = bench.system().check(check).await.unwrap();
    checked.into_inner().findings
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_damaged_record_owns_is_kept_shown_and_removed_only_with_its_container() {
    for left in [0, 150] {
        let mut bench = Bench::new().await;
        let mut run = open(false, true);
        run.name = "web".to_owned();
        let id = bench.run(run).await.started().await;
        bench.kill();
        let file = record_file(&bench, &id);
        let whole = fs::read(&file).unwrap();
        fs::write(&file, &whole[..left]).unwrap();
        let orphan = "e".repeat(64);
        add_orphan(&bench, &orphan);
        bench.start().await;

        // Not even by a repair, and neither is anything else without a record.
        let findings = check(&bench, true).await;
        assert!(findings.iter().all(|finding| finding.repaired.is_empty()));
        assert_eq!(findings.len(), 2, "{findings:?}");
        assert!(has_all_of(&bench, &id), "{:?}", bench.world);
        assert!(has_all_of(&bench, &orphan), "{:?}", bench.world);
        assert!(bench.world.containers.lock().unwrap().contains_key(&id));

        let summary = bench.list().await.remove(0);
        assert_eq!(summary.id, id);
        assert_eq!(summary.state(), wire::ContainerState::Dead);
        let name = if left == 0 { &id[..12] } else { "web" };
        assert_eq!(summary.name, name);
        let info = bench.system().info(wire::InfoRequest {}).await.unwrap();
        let damaged = info.into_inner().damaged_records;
        assert_eq!(damaged.len(), 1);
        assert_eq!(damaged[0].container_id, id);
        assert!(Path::new(&damaged[0].path).exists());
        let pruned = bench.client().prune(wire::PruneRequest::default()).await;
        assert!(pruned.unwrap().into_inner().container_ids.is_empty());
        assert!(has_all_of(&bench, &id));

        bench.remove(name, true).await.unwrap();
        assert!(!Path::new(&damaged[0].path).exists());
        // Now that every record can be read the rest goes too.
        check(&bench, true).await;
        bench.until_nothing_is_left().await;
        assert!(check(&bench, false).await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_whose_record_was_repaired_is_as_it_was() {
    let mut bench = Bench::new().await;
    let mut run = open(false, true);
    run.name = "web".to_owned();
    let id = bench.run(run).await.started().await;
    bench.kill();
    let file = record_file(&bench, &id);
    let whole = fs::read(&file).unwrap();
    fs::write(&file, b"").unwrap();
    bench.start().await;
    let info = bench.system().info(wire::InfoRequest {}).await.unwrap();
    let path = info.into_inner().damaged_records.remove(0).path;
    bench.kill();
    fs::write(path, whole).unwrap();
    bench.start().await;
    let summary = bench.list().await.remove(0);
    assert_eq!(summary.name, "web");
    assert_eq!(summary.state(), wire::ContainerState::Running);
    bench.remove("web", true).await.unwrap();
    bench.until_nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_are_kept_when_the_directory_of_the_records_is_lost() {
    let mut bench = Bench::new().await;
    let id = bench.run(open(false, true)).await.started().await;
    bench.kill();
    let state = bench.paths.state_of("gateway");
    fs::rename(state.join("containers"), state.join("elsewhere")).unwrap();
    // However often it starts without them.
    for _ in 0..2 {
        bench.start().await;
        assert!(!check(&bench, true).await.is_empty());
        assert!(bench.world.snapshots.lock().unwrap().contains(&id));
        bench.kill();
    }
    fs::remove_dir(state.join("containers")).unwrap();
    fs::rename(state.join("elsewhere"), state.join("containers")).unwrap();
    fs::remove_dir_all(state.join("damaged")).unwrap();
    bench.start().await;
    assert_eq!(bench.list().await[0].id, id);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_ephemeral_container_left_at_a_power_cut_is_removed() {
    let mut bench = Bench::new().await;
    let id = bench.run(open(true, true)).await.started().await;
    bench.kill();
    // The run directory is a tmpfs, and the processes are gone.
    fs::remove_dir_all(bench.paths.run.join("gateway")).unwrap();
    bench.world.containers.lock().unwrap().clear();
    reboot(&bench);
    assert!(has_all_of(&bench, &id));
    bench.start().await;
    bench.until_nothing_is_left().await;
}

/// Makes the gateway believe that the machine was started since it last ran.
fn reboot(bench: &Bench) {
    let boot = bench.paths.state_of("gateway").join("boot");
    fs::write(boot, "another boot").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_reports_what_belongs_to_no_container_and_its_repair_removes_it() {
    let bench = Bench::new().await;
    let own = bench.run(open(false, true)).await.started().await;
    let orphan = "e".repeat(64);
    add_orphan(&bench, &orphan);
    let findings = check(&bench, false).await;
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert!(findings[0].object.contains(&orphan));
    assert!(has_all_of(&bench, &orphan));
    let findings = check(&bench, true).await;
    assert_eq!(findings[0].repaired, "removed");
    assert!(check(&bench, true).await.is_empty());
    assert!(has_all_of(&bench, &own));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_cannot_be_removed_keeps_no_container_from_being_removed() {
    let bench = Bench::new().await;
    let runs = bench.run(open(false, true)).await.started().await;
    let rests = bench.run(open(false, true)).await.started().await;
    bench.stop(&rests).await.unwrap();
    bench
        .world
        .stubborn_logs
        .store(true, std::sync::atomic::Ordering::Relaxed);
    bench.remove(&runs, true).await.unwrap();
    bench.remove(&rests, false).await.unwrap();
    assert!(bench.list().await.is_empty());
    assert_eq!(bench.world.logs.lock().unwrap().len(), 2);
    assert_eq!(check(&bench, false).await.len(), 2);
    bench.world.heal();
    bench.until_nothing_is_left().await;
}

/// A small disk for the records, which is taken away again at the end.
struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    async fn below(bench: &mut Bench) -> Self {
        bench.kill();
        let path = bench.paths.state_of("gateway");
        fs::create_dir_all(&path).unwrap();
        rustix::mount::mount("none", &path, "tmpfs", MountFlags::empty(), c"size=1m").unwrap();
        bench.start().await;
        Self { path }
    }

    /// Takes all room, the reserve's too where `reserve`.
    fn fill(&self, reserve: bool) {
        if reserve {
            fs::remove_file(self.path.join("reserve")).unwrap();
        }
        let path = self.path.join("all");
        let mut bytes = 1 << 20;
        while bytes > 0 {
            let mut file = fs::File::options();
            let mut file = file.append(true).create(true).open(&path).unwrap();
            if std::io::Write::write_all(&mut file, &vec![0; bytes]).is_err() {
                bytes /= 2;
            }
        }
    }

    fn make_room(&self) {
        fs::remove_file(self.path.join("all")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.path, UnmountFlags::DETACH).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn removal_needs_no_room_on_the_disk_and_one_that_fails_can_be_tried_again() {
    for reserve in [false, true] {
        let mut bench = Bench::new().await;
        let disk = SmallDisk::below(&mut bench).await;
        let runs = bench.run(open(false, true)).await.started().await;
        let rests = bench.run(open(false, true)).await.started().await;
        let fails = bench.run(open(false, true)).await.started().await;
        bench.stop(&rests).await.unwrap();
        disk.fill(reserve);
        bench.remove(&runs, true).await.unwrap();
        bench.remove(&rests, false).await.unwrap();
        disk.fill(false);
        bench.world.fail("delete_snapshot", "TOLD_TO_FAIL");
        for _ in 0..2 {
            let refused = bench.remove(&fails, true).await.unwrap_err();
            assert!(refused.is("TOLD_TO_FAIL"), "{refused:?}");
            let summary = &bench.list().await[0];
            assert_eq!(summary.state(), wire::ContainerState::Dead);
        }
        bench.world.heal();
        bench.remove(&fails, true).await.unwrap();
        let mut empty = bench.list().await;
        assert!(empty.pop().is_none() && bench.world.is_empty());
        bench.kill();
        drop(disk);
        bench.start().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_nothing_is_changed_that_cannot_be_recorded() {
    let mut bench = Bench::new().await;
    let disk = SmallDisk::below(&mut bench).await;
    let id = bench.create("one", config()).await;
    disk.fill(true);
    let rename = wire::RenameRequest {
        container: id.clone(),
        name: "two".to_owned(),
    };
    let refused = bench.client().rename(rename).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
    let update = wire::UpdateRequest {
        container: id.clone(),
        resources: Some(wire::ResourceUpdate {
            pids_limit: Some(7),
            ..Default::default()
        }),
        ..Default::default()
    };
    let refused = bench.client().update(update).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
    let create = wire::CreateRequest {
        config: Some(config()),
        name: "three".to_owned(),
    };
    bench.client().create(create).await.unwrap_err();
    bench.begin(&id).await.unwrap_err();
    let (_, outcome) = bench.run(open(false, true)).await.all().await;
    outcome.unwrap_err();
    // Neither in memory nor in the services.
    let summary = bench.list().await.remove(0);
    assert_eq!(bench.list().await.len(), 1);
    assert_eq!(summary.name, "one");
    assert_ne!(summary.state(), wire::ContainerState::Running);
    let config = bench.inspect(&id).await.config.unwrap();
    assert_eq!(config.resources.unwrap_or_default().pids_limit, 0);
    assert!(bench.world.containers.lock().unwrap().is_empty());
    assert!(bench.world.endpoints.lock().unwrap().is_empty());
    assert_eq!(bench.world.snapshots.lock().unwrap().len(), 1);
    disk.make_room();
    bench.begin(&id).await.unwrap();
    bench.remove("one", true).await.unwrap();
    assert!(bench.world.is_empty());
    bench.kill();
    drop(disk);
    bench.start().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_a_container_can_be_stopped_and_its_end_is_recorded_later() {
    let mut bench = Bench::new().await;
    let disk = SmallDisk::below(&mut bench).await;
    let id = bench.run(open(false, true)).await.started().await;
    disk.fill(true);
    // It ends, and the caller is told that a power cut would undo that.
    let told = bench.stop(&id).await.unwrap_err();
    assert!(told.is("NOT_RECORDED"), "{told:?}");
    let summary = bench.list().await.remove(0);
    assert_eq!(summary.state(), wire::ContainerState::Exited);
    assert!(bench.world.containers.lock().unwrap().is_empty());
    disk.make_room();
    let file = record_file(&bench, &id);
    bench
        .until("it is not recorded", |_| {
            let text = fs::read_to_string(&file).unwrap();
            text.contains("\"state\":\"exited\"")
        })
        .await;
    bench.remove(&id, false).await.unwrap();
    bench.kill();
    drop(disk);
    bench.start().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_machines_start_starts_what_always_runs_and_a_services_start_does_not() {
    let mut bench = Bench::new().await;
    let with = |name: &str| wire::ContainerConfig {
        restart_policy: Some(wire::RestartPolicy {
            name: name.to_owned(),
            ..Default::default()
        }),
        ..config()
    };
    for (name, policy) in [
        ("always", "always"),
        ("unless", "unless-stopped"),
        ("never", "always"),
    ] {
        let id = bench.create(name, with(policy)).await;
        if name != "never" {
            bench.begin(&id).await.unwrap();
            bench.stop(&id).await.unwrap();
        }
    }
    let starts = bench.world.called("start");
    let settled = |bench: &Bench| bench.world.called("list") > 0;
    bench.kill();
    bench.start().await;
    // The runtime's snapshot was dealt with: a check asks it after that.
    bench.until("no look at the runtime", settled).await;
    check(&bench, false).await;
    assert_eq!(bench.world.called("start"), starts);
    bench.kill();
    reboot(&bench);
    bench.start().await;
    bench
        .until("it is not started", |bench| {
            bench.world.called("start") > starts
        })
        .await;
    for summary in bench.list().await {
        let running = matches!(
            summary.state(),
            wire::ContainerState::Running | wire::ContainerState::Restarting
        );
        assert_eq!(running, summary.name == "always", "{}", summary.name);
    }
    assert_eq!(bench.world.called("start"), starts + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_the_runtime_has_and_a_damaged_record_may_own_runs_on() {
    let mut bench = Bench::new().await;
    let id = bench.run(open(false, true)).await.started().await;
    bench.kill();
    fs::write(record_file(&bench, &id), b"x").unwrap();
    let other = "d".repeat(64);
    let container = runtime::Container {
        container_id: other.clone(),
        status: gantry_proto::shim::v1::Status::Running.into(),
        ..Default::default()
    };
    bench
        .world
        .containers
        .lock()
        .unwrap()
        .insert(other.clone(), container);
    bench.start().await;
    check(&bench, true).await;
    bench
        .until("no sweep", |bench| bench.world.called("list") > 1)
        .await;
    let containers = bench.world.containers.lock().unwrap();
    assert!(containers.contains_key(&id) && containers.contains_key(&other));
}
