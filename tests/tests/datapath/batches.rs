//! Plans of thousands of operations in real maps: where the kernel takes batches, where it does not, and where one of
//! them is refused in the middle.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, PerCpuHashMap};
use weir::{
    datapath::{Datapath, Error, Options},
    policy::plan::{Capacity, Op},
};
use weir_common::{
    identity::IdentityEntry,
    layout::map,
    policy::{Decision, DecisionKey, Row, RowKey, SourceClass, SourcePortKey},
};
use weir_tests::lab::{Families, Lab};

const MANY: u32 = 3_000;
/// Rows fit so often.
const ROWS: usize = 5_000;

fn start(lab: &Lab) -> Result<Datapath> {
    let usual = Options::new(lab.scratch().bpffs().join("weir"), lab.directory().join("run"));
    let options = Options {
        connections: 1_024,
        unconfirmed: 1_024,
        capacity: Capacity {
            rows: ROWS,
            ..usual.capacity
        },
        ..usual
    };
    Ok(Datapath::start(options)?.0)
}

fn row_key(class: u32) -> RowKey {
    RowKey {
        table: 7,
        class,
        local_class: 0,
    }
}

fn row(class: u32) -> Row {
    Row {
        id: class,
        base: [Decision::new(true, false, class); 5],
        ..Row::default()
    }
}

fn decision_key(number: u32) -> DecisionKey {
    DecisionKey {
        row: number,
        protocol: 6,
        prefix: 16,
        port: 80,
        ..DecisionKey::default()
    }
}

fn source_class(row: u32) -> SourceClass {
    SourceClass {
        class: row + 1,
        base: Decision::new(true, false, row),
    }
}

fn address(number: u32) -> std::net::IpAddr {
    std::net::Ipv4Addr::from_bits(0x0a00_0000 + number).into()
}

/// Some of every kind that a plan adds, as its compiler orders them, and what removes it.
fn plan() -> (Vec<Op>, Vec<Op>) {
    let mut add: Vec<Op> = (1..=300).map(Op::PutTrace).collect();
    add.extend((0..MANY).map(|number| Op::PutDecision(decision_key(number), Decision::new(false, true, number))));
    add.extend((0..500).map(|row| Op::PutSourcePort {
        row,
        protocol: 17,
        prefix: 16,
        port: 53,
        class: source_class(row),
    }));
    add.extend((0..MANY).map(|class| Op::PutRow(row_key(class), row(class))));
    add.extend((0..1_000).map(|identity| Op::PutIdentity {
        identity,
        class: identity + 5,
        local_node: identity == 3,
    }));
    add.extend((0..200).map(|number| Op::PutAddress(address(number), number)));
    let mut remove: Vec<Op> = (0..MANY).map(|class| Op::DeleteRow(row_key(class))).collect();
    remove.extend((0..MANY).map(|number| Op::DeleteDecision(decision_key(number))));
    remove.extend((0..500).map(|row| Op::DeleteSourcePort {
        row,
        protocol: 17,
        prefix: 16,
        port: 53,
    }));
    remove.extend((1..=300).map(Op::DeleteTrace));
    remove.extend((0..200).map(|number| Op::DeleteAddress(address(number))));
    (add, remove)
}

fn open<M: TryFrom<Map, Error = aya::maps::MapError>>(
    datapath: &Datapath,
    name: &str,
    kind: fn(MapData) -> Map,
) -> Result<M> {
    let [policy, _] = datapath.pinned();
    Ok(M::try_from(kind(MapData::from_pin(Path::new(&policy).join(name))?))?)
}

/// Classes and rows in the kernel.
fn rows(datapath: &Datapath) -> Result<BTreeMap<u32, Row>> {
    let rows: HashMap<MapData, RowKey, Row> = open(datapath, map::ROWS, Map::HashMap)?;
    let rows = rows.iter().map(|entry| entry.map(|(key, row)| (key.class, row)));
    Ok(rows.collect::<Result<_, _>>()?)
}

/// How many entries the datapath believes there are.
fn believed(datapath: &Datapath, name: &str) -> Result<u32> {
    let usage = datapath.map_usage()?;
    let usage = usage.iter().find(|usage| usage.name == name);
    usage.and_then(|usage| usage.entries).context("a map of the datapath")
}

fn comes_and_goes(datapath: &mut Datapath) -> Result<()> {
    let (add, remove) = plan();
    datapath.execute(&add)?;
    ensure!(rows(datapath)? == (0..MANY).map(|class| (class, row(class))).collect());
    let decisions: HashMap<MapData, DecisionKey, Decision> = open(datapath, map::DECISIONS, Map::HashMap)?;
    for number in 0..MANY {
        ensure!(decisions.get(&decision_key(number), 0)? == Decision::new(false, true, number));
    }
    let ports: LpmTrie<MapData, SourcePortKey, SourceClass> = open(datapath, map::SOURCE_PORTS, Map::LpmTrie)?;
    let identities: Array<MapData, IdentityEntry> = open(datapath, map::IDENTITIES, Map::Array)?;
    for identity in 0..1_000 {
        let entry = identities.get(&identity, 0)?;
        ensure!((entry.class, entry.flags != 0) == (identity + 5, identity == 3));
    }
    let traces: PerCpuHashMap<MapData, u32, u64> = open(datapath, map::TRACES, Map::PerCpuHashMap)?;
    for trace in 1..=300 {
        ensure!(traces.get(&trace, 0)?.iter().all(|count| *count == 0));
    }
    let full = [
        (map::ROWS, MANY),
        (map::DECISIONS, MANY),
        (map::SOURCE_PORTS, 500),
        (map::TRACES, 300),
        (map::IDENTITIES, 1_000),
        (map::ADDRESSES, 200),
    ];
    for (name, entries) in full {
        ensure!(believed(datapath, name)? == entries, "{name}");
    }
    ensure!(ports.iter().count() == 500);

    // Some are not there any more when their turn comes.
    datapath.execute(&[Op::DeleteRow(row_key(1_234)), Op::DeleteRow(row_key(MANY - 1))])?;
    datapath.execute(&[Op::DeleteDecision(decision_key(0)), Op::DeleteTrace(150)])?;
    datapath.execute(&remove)?;
    ensure!(rows(datapath)?.is_empty());
    ensure!(decisions.iter().next().is_none() && traces.iter().next().is_none() && ports.iter().next().is_none());
    for (name, _) in full.into_iter().filter(|(name, _)| *name != map::IDENTITIES) {
        ensure!(believed(datapath, name)? == 0, "{name}");
    }
    Ok(())
}

#[test]
fn thousands_of_operations_come_and_go() -> Result<()> {
    let lab = Lab::new(Families::V4)?;
    comes_and_goes(&mut start(&lab)?)
}

#[test]
fn a_kernel_without_batches_ends_with_the_same_maps() -> Result<()> {
    let lab = Lab::new(Families::V4)?;
    std::thread::scope(|scope| {
        let agent = scope.spawn(|| {
            refuse_batches()?;
            comes_and_goes(&mut start(&lab)?)
        });
        agent.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[test]
fn a_full_map_holds_what_came_before_and_says_so() -> Result<()> {
    let lab = Lab::new(Families::V4)?;
    let mut datapath = start(&lab)?;
    let count = ROWS as u32 + 500;
    let ops: Vec<Op> = (0..count).map(|class| Op::PutRow(row_key(class), row(class))).collect();
    match datapath.execute(&ops) {
        Err(Error::MapFull { map, .. }) => ensure!(map == map::ROWS),
        other => anyhow::bail!("{other:?}"),
    }
    let there = rows(&datapath)?;
    ensure!(there.len() >= ROWS && there.keys().copied().eq(0..there.len() as u32));
    ensure!(believed(&datapath, map::ROWS)? as usize == there.len());
    // It goes on as before once there is room.
    let remove: Vec<Op> = (0..100).map(|class| Op::DeleteRow(row_key(class))).collect();
    datapath.execute(&remove)?;
    let more: Vec<Op> = (count..count + 50)
        .map(|class| Op::PutRow(row_key(class), row(class)))
        .collect();
    datapath.execute(&more)?;
    ensure!(rows(&datapath)?.len() == there.len() - 50);
    Ok(())
}

/// From now on this thread's kernel knows no batch writes, as some maps of older ones do not.
fn refuse_batches() -> Result<()> {
    const BPF_MAP_UPDATE_BATCH: u32 = 26;
    const BPF_MAP_DELETE_BATCH: u32 = 27;
    const ENOTSUPP: u32 = 524;
    // Of struct seccomp_data: the number of the system call, and (on little-endian) the low word of its first argument.
    const NUMBER: u32 = 0;
    const COMMAND: u32 = 16;
    let load = |offset| instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset);
    let equal = |value, yes, no| instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, yes, no, value);
    let end = |value| instruction(libc::BPF_RET | libc::BPF_K, 0, 0, value);
    let mut filter = [
        load(NUMBER),
        equal(libc::SYS_bpf as u32, 0, 3),
        load(COMMAND),
        equal(BPF_MAP_UPDATE_BATCH, 2, 0),
        equal(BPF_MAP_DELETE_BATCH, 1, 0),
        end(libc::SECCOMP_RET_ALLOW),
        end(libc::SECCOMP_RET_ERRNO | ENOTSUPP),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: a filter of the given length, which lives until the call returns; it holds for this thread alone.
    let done = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
    };
    ensure!(done, "no filter: {}", std::io::Error::last_os_error());
    Ok(())
}

const fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    }
}
