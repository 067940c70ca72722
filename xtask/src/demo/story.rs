//! The steps, as every guide to network policies teaches them: everything open, default deny, allow DNS, allow the
//! front end to reach the back end.

use weir_tests::lab::probe::Protocol;

/// Somebody in the cluster.
pub struct Actor {
    /// `namespace/pod`, or `ext/name` for a host outside of the cluster.
    pub name: &'static str,
    pub app: &'static str,
    pub serves: &'static [(Protocol, u16)],
}

impl Actor {
    /// Namespace and name, unless it is outside of the cluster.
    pub fn pod(&self) -> Option<(&'static str, &'static str)> {
        self.name.split_once('/').filter(|(namespace, _)| *namespace != "ext")
    }
}

/// Of documentation (RFC 5737): whatever plays the outside world has it.
pub const INTERNET_ADDRESS: [u8; 4] = [203, 0, 113, 10];

pub const CAST: [Actor; 5] = [
    Actor {
        name: "shop/client",
        app: "client",
        serves: &[],
    },
    Actor {
        name: "shop/frontend",
        app: "frontend",
        serves: &[(Protocol::Tcp, 80)],
    },
    Actor {
        name: "shop/backend",
        app: "backend",
        serves: &[(Protocol::Tcp, 8080)],
    },
    Actor {
        name: "kube-system/dns",
        app: "dns",
        serves: &[(Protocol::Udp, 53), (Protocol::Tcp, 53)],
    },
    Actor {
        name: "ext/internet",
        app: "internet",
        serves: &[(Protocol::Tcp, 443)],
    },
];

/// What is served: the columns of the matrix.
pub struct Service {
    pub host: &'static str,
    pub protocol: Protocol,
    pub port: u16,
}

pub const SERVICES: [Service; 4] = [
    Service {
        host: "shop/frontend",
        protocol: Protocol::Tcp,
        port: 80,
    },
    Service {
        host: "shop/backend",
        protocol: Protocol::Tcp,
        port: 8080,
    },
    Service {
        host: "kube-system/dns",
        protocol: Protocol::Udp,
        port: 53,
    },
    Service {
        host: "ext/internet",
        protocol: Protocol::Tcp,
        port: 443,
    },
];

/// A policy that a step applies.
pub struct Policy {
    pub file: &'static str,
    pub yaml: &'static str,
}

/// One step.
pub struct Step {
    pub title: &'static str,
    pub text: &'static str,
    pub policy: Option<Policy>,
    /// Who reaches what: pairs of actor and index into [`SERVICES`]. Everybody else does not.
    pub allowed: &'static [(&'static str, usize)],
    /// What is tried for the flow lines.
    pub tries: &'static [(&'static str, usize)],
    /// What is explained.
    pub question: (&'static str, usize),
}

const CLIENT: &str = "shop/client";
const FRONTEND: &str = "shop/frontend";
const BACKEND: &str = "shop/backend";
const DNS: &str = "kube-system/dns";
const INTERNET: &str = "ext/internet";

const TO_FRONTEND: usize = 0;
const TO_BACKEND: usize = 1;
const TO_DNS: usize = 2;
const TO_INTERNET: usize = 3;

pub const STEPS: [Step; 4] = [
    Step {
        title: "Everything is open",
        text: "No policy selects any pod, so Kubernetes lets everybody speak with everybody.",
        policy: None,
        allowed: &[
            (CLIENT, TO_FRONTEND),
            (CLIENT, TO_BACKEND),
            (CLIENT, TO_DNS),
            (CLIENT, TO_INTERNET),
            (FRONTEND, TO_BACKEND),
            (FRONTEND, TO_DNS),
            (FRONTEND, TO_INTERNET),
            (BACKEND, TO_FRONTEND),
            (BACKEND, TO_DNS),
            (BACKEND, TO_INTERNET),
            (DNS, TO_FRONTEND),
            (DNS, TO_BACKEND),
            (DNS, TO_INTERNET),
            (INTERNET, TO_FRONTEND),
            (INTERNET, TO_BACKEND),
            (INTERNET, TO_DNS),
        ],
        tries: &[(CLIENT, TO_BACKEND), (INTERNET, TO_BACKEND)],
        question: (CLIENT, TO_BACKEND),
    },
    Step {
        title: "Default deny",
        text: "Every pod in shop is isolated, in both directions. Nothing is left that allows anything.",
        policy: Some(Policy {
            file: "default-deny",
            yaml: "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: default-deny, namespace: shop}
spec:
  podSelector: {}
  policyTypes: [Ingress, Egress]
",
        }),
        allowed: &[(DNS, TO_INTERNET), (INTERNET, TO_DNS)],
        tries: &[(CLIENT, TO_BACKEND), (INTERNET, TO_BACKEND), (FRONTEND, TO_DNS)],
        question: (FRONTEND, TO_DNS),
    },
    Step {
        title: "Allow DNS",
        text: "All pods in shop may ask the cluster's DNS. They still cannot speak with each other.",
        policy: Some(Policy {
            file: "allow-dns",
            yaml: "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: allow-dns, namespace: shop}
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress:
  - to:
    - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}
      podSelector: {matchLabels: {app: dns}}
    ports: [{protocol: UDP, port: 53}, {protocol: TCP, port: 53}]
",
        }),
        allowed: &[
            (CLIENT, TO_DNS),
            (FRONTEND, TO_DNS),
            (BACKEND, TO_DNS),
            (DNS, TO_INTERNET),
            (INTERNET, TO_DNS),
        ],
        tries: &[(FRONTEND, TO_DNS), (FRONTEND, TO_BACKEND)],
        question: (FRONTEND, TO_DNS),
    },
    Step {
        title: "Allow the front end to reach the back end",
        text: "Both ends must agree: egress of the front end, ingress of the back end. The client stays out.",
        policy: Some(Policy {
            file: "frontend-to-backend",
            yaml: "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: frontend-egress, namespace: shop}
spec:
  podSelector: {matchLabels: {app: frontend}}
  policyTypes: [Egress]
  egress:
  - to: [{podSelector: {matchLabels: {app: backend}}}]
    ports: [{port: 8080}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: backend-ingress, namespace: shop}
spec:
  podSelector: {matchLabels: {app: backend}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: frontend}}}]
    ports: [{port: 8080}]
",
        }),
        allowed: &[
            (CLIENT, TO_DNS),
            (FRONTEND, TO_BACKEND),
            (FRONTEND, TO_DNS),
            (BACKEND, TO_DNS),
            (DNS, TO_INTERNET),
            (INTERNET, TO_DNS),
        ],
        tries: &[(FRONTEND, TO_BACKEND), (CLIENT, TO_BACKEND)],
        question: (CLIENT, TO_BACKEND),
    },
];
