//! An API server that lists by pages alone, as all did before Kubernetes 1.32.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use weir_tests::{
    api_world::ApiWorld,
    churn::{ELSEWHERE, Writer},
    cluster::{Cluster, Options, api},
    world::only_from,
};

use super::{BOTH, NODE, ONLY_A, ONLY_B, calico, crds, enforced, misses, plan};

/// Two pages.
const PEERS: u64 = 520;

#[test]
fn without_streaming_lists_everything_is_read_by_pages() -> Result<()> {
    let cluster = Cluster::up(&Options {
        api_server: vec!["--feature-gates=WatchList=false".to_owned()],
        ..Options::default()
    })?;
    let mut world = ApiWorld::on(cluster, &plan())?;
    world.put(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": ELSEWHERE}}))?;
    let mut writer = Writer::new(world.cluster.api(), 0);
    for _ in 0..PEERS {
        writer.add()?;
    }
    world.apply(&only_from("a"))?;
    world.world.start_agents()?;
    world.check(|world| {
        enforced(world, ONLY_A)?;
        let pods = world.watch(NODE, "pods")?.context("pods are watched")?;
        ensure!(pods.objects >= PEERS && pods.failures == 0, "{pods:?}");

        // What changes is told by a watch, and what was missed by a new list.
        world.apply(&only_from("b"))?;
        enforced(world, ONLY_B)?;
        misses(world, &only_from("a"), ONLY_B)?;
        enforced(world, ONLY_A)?;

        // Kinds that come and go: their definitions are read by another way than their objects.
        let group = "crd.projectcalico.org";
        let watched = |world: &ApiWorld| -> Result<bool> {
            let watch = world.watch(NODE, &format!("networkpolicies.{group}"))?;
            Ok(watch.is_some_and(|watch| watch.synced))
        };
        for crd in crds(group, "v1")? {
            world.put(&crd)?;
        }
        world.put(&calico("crd.projectcalico.org/v1", "b"))?;
        world.until("the new kinds are watched", watched)?;
        enforced(world, BOTH)?;
        for crd in crds(group, "v1")? {
            world.cluster.api().delete(&api::path(&crd)?)?;
        }
        world.until("the kinds that went are watched no more", |world| Ok(!watched(world)?))?;
        enforced(world, ONLY_A)
    })
}
