//! The bpf(2) commands that aya lacks, or offers only by interface name: the one unsafe door of this room.
//!
//! Attribute layouts are those of `union bpf_attr` in the kernel's `include/uapi/linux/bpf.h`; the kernel takes any
//! length it knows and wants the rest zero, so each struct stops after the last field that is used.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use weir_common::Direction;

const BPF_MAP_LOOKUP_AND_DELETE_ELEM: u32 = 21;
const BPF_OBJ_PIN: u32 = 6;
const BPF_OBJ_GET: u32 = 7;
const BPF_PROG_GET_FD_BY_ID: u32 = 13;
const BPF_OBJ_GET_INFO_BY_FD: u32 = 15;
const BPF_PROG_QUERY: u32 = 16;
const BPF_MAP_LOOKUP_BATCH: u32 = 24;
const BPF_MAP_UPDATE_BATCH: u32 = 26;
const BPF_MAP_DELETE_BATCH: u32 = 27;
const BPF_LINK_CREATE: u32 = 28;
const BPF_LINK_UPDATE: u32 = 29;
const BPF_LINK_DETACH: u32 = 34;
const BPF_LINK_TYPE_TCX: u32 = 11;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;

/// Runs one bpf(2) command.
///
/// # Safety
/// `attr` must be laid out as the kernel's attribute of `command`, without padding, and every pointer in it must be
/// valid for what the command reads and writes there.
unsafe fn bpf<A>(command: u32, attr: &mut A) -> io::Result<i32> {
    // SAFETY: the kernel reads and writes at most size_of::<A>() bytes of `attr`; the rest is the caller's promise.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            libc::c_long::from(command),
            std::ptr::from_mut(attr),
            size_of::<A>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result as i32)
    }
}

/// Like [`bpf`], for commands that return a new file descriptor.
///
/// # Safety
/// As for [`bpf`]; and `command` must be one that returns a descriptor.
unsafe fn bpf_fd<A>(command: u32, attr: &mut A) -> io::Result<OwnedFd> {
    // SAFETY: passed on to the caller.
    let fd = unsafe { bpf(command, attr)? };
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

#[repr(C)]
#[derive(Default)]
struct ObjAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// Pins a map, program or link. Fails with `AlreadyExists` where something has that name.
pub(super) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = ObjAttr {
        pathname: path.as_ptr() as u64,
        bpf_fd: fd.as_raw_fd() as u32,
        ..ObjAttr::default()
    };
    // SAFETY: BPF_OBJ_PIN reads a terminated string, which lives until the call returns.
    unsafe { bpf(BPF_OBJ_PIN, &mut attr) }.map(drop)
}

/// Opens whatever is pinned at `path`.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = ObjAttr {
        pathname: path.as_ptr() as u64,
        ..ObjAttr::default()
    };
    // SAFETY: BPF_OBJ_GET reads a terminated string, which lives until the call returns, and returns a descriptor.
    unsafe { bpf_fd(BPF_OBJ_GET, &mut attr) }
}

/// The TCX hook of a direction: what the pod sends comes in on the host's side.
const fn tcx_hook(direction: Direction) -> u32 {
    match direction {
        Direction::Egress => BPF_TCX_INGRESS,
        Direction::Ingress => BPF_TCX_EGRESS,
    }
}

#[repr(C)]
#[derive(Default)]
struct LinkCreateAttr {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative_fd: u32,
    pad: u32,
    expected_revision: u64,
}

/// Attaches a program as the last one of a TCX hook. Closing the link detaches it, unless it is pinned.
pub(super) fn tcx_attach(program: BorrowedFd<'_>, ifindex: u32, direction: Direction) -> io::Result<OwnedFd> {
    let mut attr = LinkCreateAttr {
        prog_fd: program.as_raw_fd() as u32,
        target_ifindex: ifindex,
        attach_type: tcx_hook(direction),
        ..LinkCreateAttr::default()
    };
    // SAFETY: no pointers; BPF_LINK_CREATE returns a descriptor.
    unsafe { bpf_fd(BPF_LINK_CREATE, &mut attr) }
}

#[repr(C)]
#[derive(Default)]
struct LinkUpdateAttr {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// Replaces a link's program atomically. `ENOLINK`: the interface is gone.
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdateAttr {
        link_fd: link.as_raw_fd() as u32,
        new_prog_fd: program.as_raw_fd() as u32,
        ..LinkUpdateAttr::default()
    };
    // SAFETY: no pointers.
    unsafe { bpf(BPF_LINK_UPDATE, &mut attr) }.map(drop)
}

/// Detaches a link although others may still hold it open.
pub(super) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = link.as_raw_fd() as u32;
    // SAFETY: the attribute of BPF_LINK_DETACH is one descriptor; no pointers.
    unsafe { bpf(BPF_LINK_DETACH, &mut attr) }.map(drop)
}

#[repr(C)]
#[derive(Default)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// Fills `info` with the first bytes of what the kernel knows of an object.
///
/// # Safety
/// `T` must be plain integers in the order of the kernel's info struct for that kind of object. Input pointers in it
/// must be null.
unsafe fn object_info<T>(fd: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    let mut attr = InfoAttr {
        bpf_fd: fd.as_raw_fd() as u32,
        info_len: size_of::<T>() as u32,
        info: std::ptr::from_mut(info) as u64,
    };
    // SAFETY: the kernel writes at most info_len bytes to `info`, which lives until the call returns.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }.map(drop)
}

/// A TCX link as the kernel describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TcxLink {
    pub program_id: u32,
    /// 0: the interface is gone.
    pub ifindex: u32,
    pub direction: Option<Direction>,
}

/// Reads a link. None: it is of another type than TCX.
pub(super) fn tcx_link(link: BorrowedFd<'_>) -> io::Result<Option<TcxLink>> {
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        link_type: u32,
        id: u32,
        prog_id: u32,
        // The union of the types' own parts is aligned to eight bytes.
        pad: u32,
        ifindex: u32,
        attach_type: u32,
        rest: [u64; 4],
    }
    let mut info = Info::default();
    // SAFETY: integers in the order of struct bpf_link_info with its tcx part; no pointers are passed in.
    unsafe { object_info(link, &mut info)? };
    Ok((info.link_type == BPF_LINK_TYPE_TCX).then(|| TcxLink {
        program_id: info.prog_id,
        ifindex: info.ifindex,
        direction: [Direction::Egress, Direction::Ingress]
            .into_iter()
            .find(|direction| tcx_hook(*direction) == info.attach_type),
    }))
}

/// Id and name (at most 15 bytes) of a program.
pub(super) fn program_info(program: BorrowedFd<'_>) -> io::Result<(u32, String)> {
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        prog_type: u32,
        id: u32,
        tag: [u8; 8],
        jited_len: u32,
        xlated_len: u32,
        jited: u64,
        xlated: u64,
        load_time: u64,
        uid: u32,
        map_count: u32,
        map_ids: u64,
        name: [u8; 16],
    }
    let mut info = Info::default();
    // SAFETY: integers in the order of struct bpf_prog_info; its buffers are null with length 0.
    unsafe { object_info(program, &mut info)? };
    let length = info.name.iter().position(|byte| *byte == 0).unwrap_or(info.name.len());
    Ok((info.id, String::from_utf8_lossy(&info.name[..length]).into_owned()))
}

/// Name of the program with that id.
pub(super) fn program_name(id: u32) -> io::Result<String> {
    #[repr(C)]
    #[derive(Default)]
    struct Attr {
        id: u32,
        next_id: u32,
        open_flags: u32,
    }
    let mut attr = Attr { id, ..Attr::default() };
    // SAFETY: no pointers; BPF_PROG_GET_FD_BY_ID returns a descriptor.
    let fd = unsafe { bpf_fd(BPF_PROG_GET_FD_BY_ID, &mut attr)? };
    program_info(std::os::fd::AsFd::as_fd(&fd)).map(|(_, name)| name)
}

/// Ids of the programs on a TCX hook, in their order. `EINVAL`: this kernel has no TCX.
pub(super) fn tcx_programs(ifindex: u32, direction: Direction) -> io::Result<Vec<u32>> {
    #[repr(C)]
    #[derive(Default)]
    struct Attr {
        target_ifindex: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        prog_ids: u64,
        count: u32,
        pad: u32,
        prog_attach_flags: u64,
        link_ids: u64,
        link_attach_flags: u64,
        revision: u64,
    }
    // The kernel allows 64 programs on one hook (BPF_MPROG_MAX).
    let mut ids = [0_u32; 64];
    let mut attr = Attr {
        target_ifindex: ifindex,
        attach_type: tcx_hook(direction),
        prog_ids: ids.as_mut_ptr() as u64,
        count: ids.len() as u32,
        ..Attr::default()
    };
    // SAFETY: the kernel writes at most `count` ids to the array, which lives until the call returns.
    unsafe { bpf(BPF_PROG_QUERY, &mut attr)? };
    Ok(ids[..ids.len().min(attr.count as usize)].to_vec())
}

/// True where the kernel has TCX hooks (6.6 and later, if not configured out): asked of the loopback interface,
/// whose index is 1 in every network namespace.
pub(super) fn has_tcx() -> bool {
    tcx_programs(1, Direction::Egress).is_ok()
}

/// The attribute of all batch commands.
#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// A batch that ended early.
#[derive(Debug)]
pub(super) struct Interrupted {
    /// Elements from the first on that were done.
    pub done: usize,
    /// What the kernel said of the next one, or of the whole batch.
    pub error: io::Error,
}

/// Writes elements of a map in their order, each as one update without conditions. A per-CPU map takes as many values
/// for each key as there are possible CPUs, each of a multiple of eight bytes.
///
/// `K` and `V` must have the sizes of the map's keys and values (checked when it was opened). Since kernel 5.6 for hash
/// maps (aa2e93b8e58e), later for others: `ENOTSUPP` where it is not there.
pub(super) fn update_batch<K: aya::Pod, V: aya::Pod>(
    map: BorrowedFd<'_>,
    keys: &[K],
    values: &[V],
    per_key: usize,
) -> Result<(), Interrupted> {
    if keys.len() * per_key != values.len() {
        return Err(Interrupted {
            done: 0,
            error: io::Error::from_raw_os_error(libc::EINVAL),
        });
    }
    let attr = BatchAttr {
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        ..BatchAttr::default()
    };
    // SAFETY: both arrays hold an element of the map's own size for each of `count`, and are only read.
    unsafe { batch(BPF_MAP_UPDATE_BATCH, map, keys.len(), attr) }
}

/// Deletes elements of a map in their order; ends at one that is not there (`ENOENT`). As [`update_batch`].
pub(super) fn delete_batch<K: aya::Pod>(map: BorrowedFd<'_>, keys: &[K]) -> Result<(), Interrupted> {
    let attr = BatchAttr {
        keys: keys.as_ptr() as u64,
        ..BatchAttr::default()
    };
    // SAFETY: the array holds a key of the map's own size for each of `count`, and is only read.
    unsafe { batch(BPF_MAP_DELETE_BATCH, map, keys.len(), attr) }
}

/// # Safety
/// The arrays in `attr` must be valid for what the command does with `count` elements of the map.
unsafe fn batch(command: u32, map: BorrowedFd<'_>, count: usize, attr: BatchAttr) -> Result<(), Interrupted> {
    let mut attr = BatchAttr {
        count: count as u32,
        map_fd: map.as_raw_fd() as u32,
        ..attr
    };
    // SAFETY: the caller's promise.
    unsafe { bpf(command, &mut attr) }.map(drop).map_err(|error| {
        // The kernel writes how many were done, unless it refuses the command before the first.
        let done = attr.count as usize;
        Interrupted {
            done: if done < count { done } else { 0 },
            error,
        }
    })
}

/// One run over a hash map in batches.
///
/// Sees every element that stays in the map during the run exactly once; what is added or removed meanwhile may or
/// may not be seen (the kernel locks one bucket at a time).
pub(super) struct Batches<'a> {
    map: BorrowedFd<'a>,
    key_size: usize,
    value_size: usize,
    cursor: Option<u64>,
    done: bool,
    keys: Vec<u8>,
    values: Vec<u8>,
}

impl<'a> Batches<'a> {
    /// `key_size` and `value_size` must be those of the map (checked when it was opened). A per-CPU map's values are
    /// all CPUs' values, each rounded up to eight bytes.
    pub(super) fn new(map: BorrowedFd<'a>, key_size: usize, value_size: usize) -> Self {
        const ELEMENTS: usize = 4096;
        Self {
            map,
            key_size,
            value_size,
            cursor: None,
            done: false,
            keys: vec![0; ELEMENTS * key_size],
            values: vec![0; ELEMENTS * value_size],
        }
    }

    /// The next keys and values, as bytes, one element after the other. None: that was all.
    pub(super) fn next(&mut self) -> io::Result<Option<(&[u8], &[u8])>> {
        while !self.done {
            let cursor = self.cursor;
            // A hash map's cursor is a bucket number of four bytes.
            let mut next = 0_u64;
            let mut attr = BatchAttr {
                in_batch: cursor.as_ref().map_or(0, |cursor| std::ptr::from_ref(cursor) as u64),
                out_batch: std::ptr::from_mut(&mut next) as u64,
                keys: self.keys.as_mut_ptr() as u64,
                values: self.values.as_mut_ptr() as u64,
                count: (self.keys.len() / self.key_size) as u32,
                map_fd: self.map.as_raw_fd() as u32,
                ..BatchAttr::default()
            };
            // SAFETY: both buffers hold `count` elements of the map's own sizes, the cursors are longer than the
            // four bytes of a hash map's, and all of them live until the call returns.
            match unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) } {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => self.done = true,
                // One bucket holds more than the buffers: nothing of it was copied.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && attr.count == 0 => {
                    self.keys.resize(self.keys.len() * 2, 0);
                    self.values.resize(self.values.len() * 2, 0);
                    continue;
                }
                Err(error) => return Err(error),
            }
            self.cursor = Some(next);
            let count = attr.count as usize;
            if count != 0 {
                return Ok(Some((
                    &self.keys[..count * self.key_size],
                    &self.values[..count * self.value_size],
                )));
            }
        }
        Ok(None)
    }
}

/// Takes one element out of a hash map. None: there is none.
///
/// `V` must have the size of the map's values (checked when it was opened).
pub(super) fn lookup_and_delete<K: aya::Pod, V: aya::Pod + Default>(
    map: BorrowedFd<'_>,
    key: &K,
) -> io::Result<Option<V>> {
    #[repr(C)]
    #[derive(Default)]
    struct Attr {
        map_fd: u32,
        pad: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let mut value = V::default();
    let mut attr = Attr {
        map_fd: map.as_raw_fd() as u32,
        key: std::ptr::from_ref(key) as u64,
        value: std::ptr::from_mut(&mut value) as u64,
        ..Attr::default()
    };
    // SAFETY: key and value have the map's sizes and live until the call returns; every bit pattern is a valid V.
    match unsafe { bpf(BPF_MAP_LOOKUP_AND_DELETE_ELEM, &mut attr) } {
        Ok(_) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads plain data from the front of `bytes`. None: too short.
pub(super) fn read<T: aya::Pod>(bytes: &[u8]) -> Option<T> {
    if bytes.len() < size_of::<T>() {
        return None;
    }
    // SAFETY: long enough, unaligned read, and every bit pattern is a valid T (aya::Pod).
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// `CLOCK_MONOTONIC`, ns: the clock of every time stamp in the maps.
#[must_use]
pub fn clock() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes to one timespec that lives until the call returns. The monotonic clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Name of an interface of this network namespace. None: there is none with that index.
#[must_use]
pub fn interface_name(ifindex: u32) -> Option<String> {
    let mut name = [0_u8; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the length that if_indextoname asks for.
    if unsafe { libc::if_indextoname(ifindex, name.as_mut_ptr().cast()) }.is_null() {
        return None;
    }
    let length = name.iter().position(|byte| *byte == 0)?;
    String::from_utf8(name[..length].to_vec()).ok()
}
