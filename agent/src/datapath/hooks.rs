//! Whether the programs are still where they were attached: others can take them away.
//!
//! Whoever removes a clsact qdisc removes all filters on it; a link can be detached although it is pinned. Nothing that
//! the agent holds changes by that, so only the kernel can tell.

use weir_common::Direction;

use super::{
    Datapath,
    error::{Error, Result},
    links::DIRECTIONS,
    sys, tc,
};

/// An endpoint that is not judged in some direction, because somebody has taken its programs away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unhooked {
    pub id: u32,
    pub ifindex: u32,
    pub directions: Vec<Direction>,
}

impl std::fmt::Display for Unhooked {
    /// The bare hooks, as seen from the interface.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hooks = self.directions.iter().map(|direction| match direction {
            Direction::Egress => "ingress (what the pod sends)",
            Direction::Ingress => "egress (what it receives)",
        });
        f.write_str(&hooks.collect::<Vec<_>>().join(" and "))
    }
}

impl Datapath {
    /// Looks whether the current generation's programs run on the hooks of those endpoints that are attached. One on which
    /// they do not is not attached any more: [`Self::attach`] puts them back. An interface that is gone is no finding.
    ///
    /// What cannot be looked at keeps nothing else from being looked at, and counts as it did.
    pub fn look(&mut self, ids: &[u32]) -> (Vec<Unhooked>, Result<()>) {
        let mut found = Vec::new();
        let programs = match self.current_programs() {
            Ok(programs) => programs,
            Err(error) => return (found, Err(error)),
        };
        let mut filters = None;
        let mut failures = Vec::new();
        for &id in ids {
            let endpoint = self.endpoints.get(&id).filter(|endpoint| endpoint.attached);
            let Some(ifindex) = endpoint.and_then(|endpoint| endpoint.written) else {
                continue;
            };
            match self.bare_hooks(ifindex, programs, &mut filters) {
                Ok(directions) if directions.is_empty() || sys::interface_name(ifindex).is_none() => {}
                Ok(directions) => {
                    self.unhook(id, ifindex);
                    found.push(Unhooked {
                        id,
                        ifindex,
                        directions,
                    });
                }
                Err(error) => failures.push(error),
            }
        }
        (found, Error::all(failures))
    }

    fn current_programs(&self) -> Result<[(Direction, u32); 2]> {
        let mut programs = DIRECTIONS.map(|direction| (direction, 0));
        for (direction, id) in &mut programs {
            let name = tc::program_name(*direction);
            let info = sys::program_info(self.generation.program(*direction));
            *id = info
                .map_err(Error::path(self.generation.dir().join(name), "read the program"))?
                .0;
        }
        Ok(programs)
    }

    fn bare_hooks(
        &self,
        ifindex: u32,
        programs: [(Direction, u32); 2],
        filters: &mut Option<tc::Asker>,
    ) -> Result<Vec<Direction>> {
        let mut bare = Vec::new();
        for (direction, program) in programs {
            if !self.links.runs(ifindex, direction, program, filters)? {
                bare.push(direction);
            }
        }
        Ok(bare)
    }

    fn unhook(&mut self, id: u32, ifindex: u32) {
        // Attaching anew leaves nothing to be done later.
        self.unsettled.forget(ifindex);
        if let Some(endpoint) = self.endpoints.get_mut(&id) {
            endpoint.attached = false;
            // Whoever was at the interface has perhaps left something there.
            endpoint.forwarding = None;
        }
    }
}
