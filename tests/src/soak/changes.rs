//! What is done to the pods of the lab, their labels, their namespaces and their policies.

use anyhow::Result;
use serde_json::json;

use super::{
    PODS,
    policies::{self, NAMESPACES, TEAMS},
};
use crate::{
    api_world::{ApiWorld, push, put, retry},
    churn::Random,
    cluster::api::Api,
    lab::PodPlan,
    world::{World, pod_file},
};

/// Policies of each namespace, at most.
const POLICIES: usize = 4;
/// Pods that go and come back.
const COMING: [&str; 2] = ["x/b", "y/b"];

/// Pods whose labels change.
fn churned() -> impl Iterator<Item = &'static str> {
    PODS.into_iter()
        .map(|(pod, _)| pod)
        .filter(|pod| !pod.starts_with("k/"))
}

/// Does one thing, and does not wait for it.
pub fn one(world: &mut World, api: &Api, random: &mut Random) -> Result<()> {
    let namespace = NAMESPACES[random.below(NAMESPACES.len())];
    let name = format!("p{}", random.below(POLICIES));
    match random.below(10) {
        0..4 => {
            let policy = policies::policy(random, namespace, &name);
            put(api, &policy)
        }
        4..6 => retry(|| api.delete(&policy_path(namespace, &name))),
        6..8 => {
            let pods: Vec<&str> = churned().collect();
            let pod = pods[random.below(pods.len())];
            label(world, api, pod, &policies::app(random))
        }
        8 => team(api, namespace, TEAMS[random.below(TEAMS.len())]),
        _ => {
            let pod = COMING[random.below(COMING.len())];
            let node = world.lab.pod(pod)?.node.clone();
            world.remove_pod(pod)?;
            retry(|| api.delete(&pod_path(pod)))?;
            world.add_pods(&[PodPlan::new(pod, &node)])?;
            label(world, api, pod, &policies::app(random))
        }
    }
}

/// Everything as it is at the start.
pub fn restore(world: &mut World, api: &Api) -> Result<()> {
    for namespace in NAMESPACES {
        for number in 0..POLICIES {
            retry(|| api.delete(&policy_path(namespace, &format!("p{number}"))))?;
        }
        team(api, namespace, TEAMS[0])?;
    }
    for pod in churned() {
        label(world, api, pod, "app-5")?;
    }
    Ok(())
}

/// The same before there are agents.
pub fn reset(world: &mut ApiWorld) -> Result<()> {
    let ApiWorld { world, cluster, .. } = world;
    restore(world, cluster.api())
}

fn policy_path(namespace: &str, name: &str) -> String {
    format!("/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies/{name}")
}

fn pod_path(pod: &str) -> String {
    let (namespace, name) = pod.split_once('/').unwrap_or(("default", pod));
    format!("/api/v1/namespaces/{namespace}/pods/{name}")
}

fn label(world: &mut World, api: &Api, pod: &str, app: &str) -> Result<()> {
    let (_, name) = pod.split_once('/').unwrap_or(("default", pod));
    world.relabel(pod, &[("pod", name), ("app", app)])?;
    push(world, api, &pod_file(pod))
}

fn team(api: &Api, namespace: &str, team: &str) -> Result<()> {
    let labels = json!({"metadata": {"labels": {"team": team}}});
    retry(|| api.patch(&format!("/api/v1/namespaces/{namespace}"), &labels)).map(drop)
}
