//! What hangs our programs onto interfaces: TCX links (pinned) or clsact filters (which need no pin). Nothing of it goes when the agent does.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd, BorrowedFd},
};

use tracing::{debug, warn};
use weir_common::Direction;

use super::{
    error::{Error, Result},
    pins::{self, Pins},
    sys, tc,
};

/// How programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// TCX links (Linux 6.6 and later).
    Tcx,
    /// clsact filters.
    Tc,
}

/// Both hooks of an interface.
pub(super) const DIRECTIONS: [Direction; 2] = [Direction::Egress, Direction::Ingress];

/// A TC program on one of our interfaces that is not ours. Left in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignProgram {
    pub direction: Direction,
    pub id: u32,
    /// Of a filter its own name, else the program's.
    pub name: String,
    pub mode: Mode,
}

impl std::fmt::Display for ForeignProgram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hook = match self.direction {
            Direction::Egress => "ingress",
            Direction::Ingress => "egress",
        };
        let mode = match self.mode {
            Mode::Tcx => "tcx",
            Mode::Tc => "tc",
        };
        write!(f, "{} ({mode} {hook}, program {})", self.name, self.id)
    }
}

#[derive(Debug)]
pub(super) struct Links {
    pub pins: Pins,
    pub mode: Mode,
}

impl Links {
    /// Puts `program` onto a hook, or atomically in the place of the one that is there; then removes what another
    /// mode left there. So the hook is never empty in between, and a packet that passes both programs is judged
    /// twice by the same rules.
    ///
    /// A clsact qdisc stays, also an empty one of ours: without it the kernel would lose packets (see
    /// [`Self::remove_qdisc`]).
    pub(super) fn attach(&self, ifindex: u32, direction: Direction, program: BorrowedFd<'_>) -> Result<()> {
        match self.mode {
            Mode::Tcx => {
                self.attach_tcx(ifindex, direction, program)?;
                remove_filter(ifindex, direction)?;
            }
            Mode::Tc => {
                self.attach_tc(ifindex, direction, program)?;
                self.detach_tcx(ifindex, direction)?;
            }
        }
        Ok(())
    }

    /// The same within microseconds, by a filter where the mode is TCX and no link is there yet: true, and
    /// [`Self::attach`] is to put a link in its place when there is time. A new link has to wait until no packet is
    /// within the hook any more, which takes an RCU grace period, some 10 to 20 ms under the RTNL lock
    /// (`tcx_entry_sync` in include/net/tcx.h); a filter on a new qdisc hastens it (`mini_qdisc_pair_swap` in
    /// net/sched/sch_generic.c).
    ///
    /// For an interface that nobody sends to yet: a new qdisc takes its transmit queue away for a moment.
    pub(super) fn attach_at_once(&self, ifindex: u32, direction: Direction, program: BorrowedFd<'_>) -> Result<bool> {
        if self.mode == Mode::Tcx && !self.pins.link(ifindex, direction).exists() {
            match self.attach_tc(ifindex, direction, program) {
                Ok(()) => return Ok(true),
                // A kernel without clsact, or an `ingress` qdisc of somebody else in its place.
                Err(error) => debug!(ifindex, %error, "no filter for a start"),
            }
        }
        self.attach(ifindex, direction, program)?;
        Ok(false)
    }

    /// Takes ours off both hooks of an interface, whatever the mode; also of one that is gone. True: there was something.
    /// What fails does not keep the rest.
    pub(super) fn detach(&self, ifindex: u32) -> Result<bool> {
        let mut found = false;
        let mut failures = Vec::new();
        for direction in DIRECTIONS {
            for detached in [self.detach_tcx(ifindex, direction), self.detach_tc(ifindex, direction)] {
                match detached {
                    Ok(there) => found |= there,
                    Err(error) => failures.push(error),
                }
            }
        }
        Error::all(failures)?;
        Ok(found)
    }

    /// Interfaces that have (or, of pinned links, had) something of ours, in this network namespace.
    pub(super) fn attached(&self) -> Result<BTreeSet<u32>> {
        let mut found: BTreeSet<u32> = self.pins.link_pins()?.into_iter().map(|link| link.ifindex).collect();
        found.extend(self.pins.qdisc_marks()?);
        let interfaces = nix::net::if_::if_nameindex().map_err(|error| Error::Netlink {
            action: "list interfaces",
            source: error.into(),
        })?;
        for interface in interfaces.iter() {
            let ifindex = interface.index();
            for direction in DIRECTIONS {
                if filters(ifindex, direction)?
                    .iter()
                    .any(|filter| filter.is_ours(direction))
                {
                    found.insert(ifindex);
                }
            }
        }
        Ok(found)
    }

    /// Ids of the programs of ours that run on an interface.
    pub(super) fn programs(&self, ifindex: u32) -> Result<Vec<u32>> {
        let mut found = Vec::new();
        for direction in DIRECTIONS {
            let path = self.pins.link(ifindex, direction);
            match sys::open_pin(&path) {
                Ok(link) => {
                    let link = sys::tcx_link(link.as_fd()).map_err(Error::path(&path, "read the link"))?;
                    found.extend(link.filter(|link| link.ifindex == ifindex).map(|link| link.program_id));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::path(path, "open the pinned link")(error)),
            }
            let ours = filters(ifindex, direction)?
                .into_iter()
                .filter(|filter| filter.is_ours(direction));
            found.extend(ours.map(|filter| filter.program_id));
        }
        Ok(found)
    }

    /// Whether a program runs on a hook, from whatever it hangs on: a filter may stand in for a link until there is time
    /// ([`Self::attach_at_once`]). False also where the interface is gone. `filters` is opened when it is needed first.
    pub(super) fn runs(
        &self,
        ifindex: u32,
        direction: Direction,
        program: u32,
        filters: &mut Option<tc::Asker>,
    ) -> Result<bool> {
        if self.mode == Mode::Tcx {
            match sys::tcx_programs(ifindex, direction) {
                Ok(programs) if programs.contains(&program) => return Ok(true),
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(false),
                Err(error) => return Err(Error::interface(ifindex, "list the programs (TCX)")(error)),
            }
        }
        let asked = match filters {
            Some(filters) => filters.program(ifindex, direction),
            None => tc::Asker::open().and_then(|opened| filters.insert(opened).program(ifindex, direction)),
        };
        let found = asked.map_err(Error::interface(ifindex, "look for the filter"))?;
        Ok(found == Some(program))
    }

    /// TC programs of others on an interface.
    pub(super) fn foreign(&self, ifindex: u32) -> Result<Vec<ForeignProgram>> {
        let ours = self.programs(ifindex)?;
        let mut found = Vec::new();
        for direction in DIRECTIONS {
            // A kernel without TCX has no programs there.
            for id in sys::tcx_programs(ifindex, direction).unwrap_or_default() {
                if !ours.contains(&id) {
                    found.push(ForeignProgram {
                        direction,
                        id,
                        name: sys::program_name(id).unwrap_or_default(),
                        mode: Mode::Tcx,
                    });
                }
            }
            for filter in filters(ifindex, direction)? {
                if !filter.is_ours(direction) {
                    found.push(ForeignProgram {
                        direction,
                        id: filter.program_id,
                        name: filter.name,
                        mode: Mode::Tc,
                    });
                }
            }
        }
        Ok(found)
    }

    fn attach_tcx(&self, ifindex: u32, direction: Direction, program: BorrowedFd<'_>) -> Result<()> {
        let path = self.pins.link(ifindex, direction);
        match sys::open_pin(&path) {
            Ok(link) => {
                let info = sys::tcx_link(link.as_fd()).map_err(Error::path(&path, "read the link"))?;
                let fits = info.is_some_and(|info| info.ifindex == ifindex && info.direction == Some(direction));
                if fits {
                    match sys::link_update(link.as_fd(), program) {
                        Ok(()) => return Ok(()),
                        // The interface went away in this moment.
                        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
                        Err(error) => return Err(Error::interface(ifindex, "replace the program")(error)),
                    }
                }
                debug!(path = %path.display(), "a pinned link whose interface is gone, or that somebody has detached");
                pins::remove_file(&path)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::path(path, "open the pinned link")(error)),
        }
        let link = sys::tcx_attach(program, ifindex, direction)
            .map_err(Error::interface(ifindex, "attach the program (TCX)"))?;
        sys::pin(link.as_fd(), &path).map_err(Error::path(path, "pin the link"))
    }

    fn attach_tc(&self, ifindex: u32, direction: Direction, program: BorrowedFd<'_>) -> Result<()> {
        let added = tc::add_clsact(ifindex).map_err(Error::interface(ifindex, "add a clsact qdisc"))?;
        if added {
            pins::make_dir(&self.pins.qdisc(ifindex))?;
        }
        tc::put_filter(ifindex, direction, program).map_err(Error::interface(ifindex, "attach the program (clsact)"))
    }

    fn detach_tcx(&self, ifindex: u32, direction: Direction) -> Result<bool> {
        let path = self.pins.link(ifindex, direction);
        match sys::open_pin(&path) {
            Ok(link) => {
                if let Err(error) = sys::link_detach(link.as_fd()) {
                    // Of an interface that is gone: nothing to detach. Removing the pin does the rest in any case.
                    debug!(path = %path.display(), %error, "detaching a link");
                }
                pins::remove_file(&path)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::path(path, "open the pinned link")(error)),
        }
    }

    fn detach_tc(&self, ifindex: u32, direction: Direction) -> Result<bool> {
        let removed = remove_filter(ifindex, direction)?;
        self.remove_qdisc(ifindex)?;
        Ok(removed)
    }

    /// Removes the clsact qdisc of an interface if it is ours and empty. The kernel takes the interface's transmit queue
    /// away for that moment (`qdisc_graft` in net/sched/sch_api.c), and what is sent through it just then is lost.
    pub(super) fn remove_qdisc(&self, ifindex: u32) -> Result<()> {
        let mark = self.pins.qdisc(ifindex);
        if mark.exists() {
            match tc::remove_empty_clsact(ifindex) {
                Ok(true) => {
                    pins::remove_empty(&mark)?;
                }
                Ok(false) => {}
                Err(error) => warn!(ifindex, %error, "cannot remove the clsact qdisc"),
            }
        }
        Ok(())
    }

    /// Leaves an empty clsact qdisc of ours to its interface, for good: it does nothing.
    pub(super) fn disown_qdisc(&self, ifindex: u32) -> Result<()> {
        pins::remove_empty(&self.pins.qdisc(ifindex)).map(drop)
    }
}

fn remove_filter(ifindex: u32, direction: Direction) -> Result<bool> {
    tc::remove_filter(ifindex, direction).map_err(Error::interface(ifindex, "remove the filter"))
}

fn filters(ifindex: u32, direction: Direction) -> Result<Vec<tc::Filter>> {
    tc::filters(ifindex, direction).map_err(Error::interface(ifindex, "list the filters"))
}
