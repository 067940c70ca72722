//! Staged policies: compiled apart, for flow records alone.

use super::agent::Agent;
use crate::policy::{change::Change, model::Policy, staged::StagedWorld};

impl Agent {
    /// Follows the changes, while there are staged policies. Call it before the enforced world is told of them.
    pub(super) fn stage(&mut self, changes: &[Change]) {
        let mut names = self.directory.write();
        // Without a change of policies there are as many as before.
        let policies_changed = changes.iter().any(|change| matches!(change, Change::Policy(..)));
        if !policies_changed && names.staged.is_none() {
            return;
        }
        if policies_changed && !self.index.has_staged() {
            names.staged = None;
            return;
        }
        match &mut names.staged {
            Some(world) => world.apply(changes.iter().cloned()),
            None => {
                let mut world = Box::<StagedWorld>::default();
                let known = self.endpoints.iter().filter_map(|(pod, endpoint)| {
                    let id = endpoint.id?;
                    self.compiler.endpoint(id)?;
                    Some(Change::Endpoint(id, Some(pod.clone())))
                });
                world.apply(self.index.snapshot().into_iter().chain(known));
                names.staged = Some(world);
            }
        }
    }

    pub(super) fn staged_policies(&self) -> impl Iterator<Item = &Policy> {
        self.index.policies().map(AsRef::as_ref).filter(|policy| policy.staged)
    }
}
