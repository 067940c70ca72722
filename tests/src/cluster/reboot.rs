//! A node loses its power and is started again.

use anyhow::Result;

use super::{Cluster, cgroup, network, network_of};

impl Cluster {
    /// Ends everything of a node at once, as a power loss does, and starts it again: what it had on its disk is there, what
    /// it had in memory is not, be it processes, interfaces, rules, `/run` or pins. Returns when its kubelet has been
    /// started; nothing need be ready by then.
    ///
    /// # Errors
    /// If there is no such node, something of it withstands, or it does not start.
    pub fn reboot(&self, number: usize) -> Result<()> {
        self.holder(number)?;
        let node = self.member(number);
        let fabric = network_of(self.state().fabric)?;
        // First, so that nobody sees it die by parts.
        network::unplug(&fabric, number)?;
        cgroup::destroy(&self.place.node_group(number))?;
        self.processes.reap();
        node.forget()?;
        cgroup::make(&self.place.node_group(number))?;
        let netns = network::plug(&fabric, number, self.numbers().count())?;
        let holder = self.processes.adopt(node.hold(&netns, self.binaries.directory())?);
        {
            let mut state = self.state();
            state.nodes[number - 1] = holder;
            state.save(&self.place)?;
        }
        self.start_runtime(number, &[])?;
        self.start_kubelet(number)
    }
}
