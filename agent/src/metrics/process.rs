//! What the kernel says of the agent's process.

use std::fs;

use nix::{
    sys::{
        resource::{Resource, UsageWho, getrlimit, getrusage},
        time::{TimeVal, TimeValLike},
    },
    unistd::{SysconfVar, sysconf},
};

/// What is None could not be read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Process {
    pub cpu_seconds: Option<f64>,
    pub resident_bytes: Option<u64>,
    pub virtual_bytes: Option<u64>,
    pub open_fds: Option<u64>,
    pub max_fds: Option<u64>,
}

impl Process {
    #[must_use]
    pub fn read() -> Self {
        let [virtual_bytes, resident_bytes] = memory().map_or([None; 2], |sizes| sizes.map(Some));
        Self {
            cpu_seconds: getrusage(UsageWho::RUSAGE_SELF)
                .ok()
                .map(|usage| seconds(usage.user_time()) + seconds(usage.system_time())),
            resident_bytes,
            virtual_bytes,
            // The directory is open itself while it is read.
            open_fds: fs::read_dir("/proc/self/fd")
                .ok()
                .map(|entries| (entries.count() as u64).saturating_sub(1)),
            max_fds: getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft),
        }
    }
}

fn seconds(time: TimeVal) -> f64 {
    time.num_microseconds() as f64 / 1e6
}

/// Address space and resident memory: the first two fields of proc_pid_statm(5), in pages.
fn memory() -> Option<[u64; 2]> {
    let page = u64::try_from(sysconf(SysconfVar::PAGE_SIZE).ok()??).ok()?;
    let text = fs::read_to_string("/proc/self/statm").ok()?;
    let mut pages = text.split_whitespace().map(str::parse::<u64>);
    Some([pages.next()?.ok()? * page, pages.next()?.ok()? * page])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_memory_files_and_used_its_time() {
        let process = Process::read();
        let [size, resident] = memory().expect("statm");
        assert!(size >= resident && resident > 1 << 20, "{size} {resident}");
        // Standard input, output and error, and what the other tests have open.
        assert!(
            process.open_fds >= Some(3) && process.max_fds >= process.open_fds,
            "{process:?}"
        );
        let before = process.cpu_seconds.expect("getrusage");
        let mut sum = 0_u64;
        while Process::read().cpu_seconds.expect("getrusage") < before + 0.01 {
            sum = (0..100_000).fold(sum, u64::wrapping_add);
        }
        std::hint::black_box(sum);
    }
}
