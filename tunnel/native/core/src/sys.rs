//! System calls: every `unsafe` of the engine that talks to the kernel, behind functions that are safe.
//!
//! Descriptors are borrowed: the Python objects that opened them close them, after the engine has let go.
//!
//! Over 500 lines: what is `unsafe` about the kernel is in one place, its tests beside it.

use std::fs::File;
use std::io::{Error, ErrorKind, IoSlice, Result};
use std::mem::{MaybeUninit, size_of, zeroed};
use std::os::fd::RawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::thread::JoinHandleExt;
use std::thread::JoinHandle;

const SOL_UDP: libc::c_int = 17;
const UDP_SEGMENT: libc::c_int = 103;
const UDP_GRO: libc::c_int = 104;
/// Messages in one call of `send_many` and `receive_many`.
pub const MESSAGES_MAX: usize = 16;
/// Octets for control messages: an ECN field, a segment size, and room to spare.
const CONTROL_ROOM: usize = 128;

/// What a failed call says.
pub fn errno(error: &Error) -> i32 {
    error.raw_os_error().unwrap_or(0)
}

fn checked(result: libc::c_int) -> Result<libc::c_int> {
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result) }
}

fn counted(result: isize) -> Result<usize> {
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result as usize) }
}

/// Monotonic seconds, as Python's `time.monotonic()` gives them.
pub fn now() -> f64 {
    // SAFETY: a timespec of zeros is one, and the kernel writes nothing beyond it.
    let time = unsafe {
        let mut time: libc::timespec = zeroed();
        libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time);
        time
    };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// Has this thread's sleeps end when they shall, not up to 50 µs later, which is what threads begin with.
pub fn sleep_precisely() {
    // SAFETY: it has no pointers.  It cannot fail, and if it did naps would only be longer.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong) };
}

/// How long the thread that opened it has waited for a core while it had work.
pub struct CoreWaits(File);

impl CoreWaits {
    /// Of this thread.  A kernel without scheduler accounting does not tell it.
    pub fn open() -> Result<CoreWaits> {
        File::open("/proc/thread-self/schedstat").map(CoreWaits)
    }

    /// Seconds since the thread began (Documentation/scheduler/sched-stats.rst: the second of three figures, in ns).
    pub fn seconds(&self) -> Result<f64> {
        let mut said = [0; 80];
        let count = self.0.read_at(&mut said, 0)?;
        let second = said[..count].split(|octet| *octet == b' ').nth(1);
        let nanoseconds = second.and_then(|digits| str::from_utf8(digits).ok()?.parse::<u64>().ok());
        nanoseconds.map(|number| number as f64 * 1e-9).ok_or_else(|| ErrorKind::InvalidData.into())
    }
}

/// Has a thread run on one core only.
pub fn pin<T>(thread: &JoinHandle<T>, core: usize) -> Result<()> {
    if core >= libc::CPU_SETSIZE as usize {
        return Err(Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: a set of zeros is the empty one.
    let mut only: libc::cpu_set_t = unsafe { zeroed() };
    // SAFETY: the core is one of those that a set has.
    unsafe { libc::CPU_SET(core, &mut only) };
    // SAFETY: who holds the handle has not joined the thread; the set is read, and no more of it than it has.
    match unsafe { libc::pthread_setaffinity_np(thread.as_pthread_t(), size_of_val(&only), &only) } {
        0 => Ok(()),
        number => Err(Error::from_raw_os_error(number)),
    }
}

/// Gives the core to whoever else wants it.
pub fn yield_core() {
    // SAFETY: it has no arguments and touches no memory.
    unsafe { libc::sched_yield() };
}

/// One read: of a device, one frame behind its virtio header.
pub fn read(fd: RawFd, buffer: &mut [u8]) -> Result<usize> {
    // SAFETY: the kernel writes at most the buffer's length into it.
    counted(unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) })
}

/// One gathering write: to a device, one frame behind its virtio header.
pub fn write(fd: RawFd, slices: &[IoSlice<'_>]) -> Result<usize> {
    // SAFETY: an IoSlice is an iovec (its documentation says so), and the kernel only reads from them.
    counted(unsafe { libc::writev(fd, slices.as_ptr().cast(), slices.len() as libc::c_int) })
}

// ── Datagrams ───────────────────────────────────────────────────────────────────────────────────────────

/// Where a datagram goes or comes from.
#[derive(Clone, Copy)]
pub enum Address {
    /// IPv4.
    V4(libc::sockaddr_in),
    /// IPv6, with the index of its scope where it is link-local.
    V6(libc::sockaddr_in6),
}

/// An address without its port and scope: who a sender is.  IPv4 is written as RFC 4291 section 2.5.5.2 maps it.
pub type Host = [u8; 16];

/// The host of these IPv4 octets.
pub fn host_v4(octets: [u8; 4]) -> Host {
    let mut host = [0; 16];
    host[10..12].fill(0xFF);
    host[12..].copy_from_slice(&octets);
    host
}

impl Address {
    /// Of four or sixteen octets.
    pub fn new(octets: &[u8], port: u16, scope: u32) -> Option<Address> {
        // SAFETY: socket addresses of zeros are valid ones.
        let (mut v4, mut v6): (libc::sockaddr_in, libc::sockaddr_in6) = unsafe { (zeroed(), zeroed()) };
        if let Ok(octets) = <[u8; 4]>::try_from(octets) {
            v4.sin_family = libc::AF_INET as u16;
            v4.sin_port = port.to_be();
            v4.sin_addr.s_addr = u32::from_ne_bytes(octets);
            return Some(Address::V4(v4));
        }
        v6.sin6_family = libc::AF_INET6 as u16;
        v6.sin6_port = port.to_be();
        v6.sin6_scope_id = scope;
        v6.sin6_addr.s6_addr = <[u8; 16]>::try_from(octets).ok()?;
        Some(Address::V6(v6))
    }

    /// Who it is.
    pub fn host(&self) -> Host {
        match self {
            Address::V4(address) => host_v4(address.sin_addr.s_addr.to_ne_bytes()),
            Address::V6(address) => address.sin6_addr.s6_addr,
        }
    }

    fn raw(&self) -> (*mut libc::c_void, libc::socklen_t) {
        match self {
            Address::V4(address) => (
                (address as *const libc::sockaddr_in).cast_mut().cast(),
                size_of::<libc::sockaddr_in>() as u32,
            ),
            Address::V6(address) => (
                (address as *const libc::sockaddr_in6).cast_mut().cast(),
                size_of::<libc::sockaddr_in6>() as u32,
            ),
        }
    }

    /// Level and type of the control message that carries an ECN field.
    fn ecn_kind(&self) -> (libc::c_int, libc::c_int) {
        match self {
            Address::V4(_) => (libc::IPPROTO_IP, libc::IP_TOS),
            Address::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
        }
    }
}

/// One send: a datagram, or several of one size that the kernel cuts apart.
pub struct Outgoing<'a> {
    /// What is gathered.
    pub slices: &'a [IoSlice<'a>],
    /// The size of each datagram, if there are several.
    pub segment: Option<u16>,
    /// The ECN field of the outer headers.
    pub ecn: u8,
}

#[repr(align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL_ROOM]);

/// Sends these to one address, in order; how many were taken, or why the first was not.
pub fn send_many(fd: RawFd, to: &Address, messages: &[Outgoing<'_>]) -> Result<usize> {
    let count = messages.len().min(MESSAGES_MAX);
    // SAFETY: headers of zeros are valid ones: no buffers, no control messages.
    let mut headers: [libc::mmsghdr; MESSAGES_MAX] = unsafe { zeroed() };
    let mut controls: [MaybeUninit<Control>; MESSAGES_MAX] = [MaybeUninit::uninit(); MESSAGES_MAX];
    let (name, name_length) = to.raw();
    for ((message, header), control) in messages[..count].iter().zip(&mut headers).zip(&mut controls) {
        let header = &mut header.msg_hdr;
        header.msg_name = name;
        header.msg_namelen = name_length;
        header.msg_iov = message.slices.as_ptr().cast_mut().cast();
        header.msg_iovlen = message.slices.len();
        if message.segment.is_some() || message.ecn != 0 {
            write_control(header, control.write(Control([0; CONTROL_ROOM])), message, to);
        }
    }
    // SAFETY: `count` headers are filled in; names, slices and control messages outlive the call, and the kernel
    // writes only the headers' lengths.
    counted(unsafe {
        match count {
            1 => libc::sendmsg(fd, &headers[0].msg_hdr, libc::MSG_DONTWAIT).min(1),
            _ => libc::sendmmsg(fd, headers.as_mut_ptr(), count as u32, libc::MSG_DONTWAIT) as isize,
        }
    })
}

fn write_control(header: &mut libc::msghdr, control: &mut Control, message: &Outgoing<'_>, to: &Address) {
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = CONTROL_ROOM;
    // SAFETY: both control messages fit the room, which is aligned for them; CMSG_NXTHDR stays within
    // msg_controllen, and the lengths are those of what is written.
    unsafe {
        let mut at = libc::CMSG_FIRSTHDR(header);
        let mut used = 0;
        if let Some(segment) = message.segment {
            (*at).cmsg_level = SOL_UDP;
            (*at).cmsg_type = UDP_SEGMENT;
            (*at).cmsg_len = libc::CMSG_LEN(2) as usize;
            libc::CMSG_DATA(at).cast::<u16>().write_unaligned(segment);
            used += libc::CMSG_SPACE(2) as usize;
            at = libc::CMSG_NXTHDR(header, at);
        }
        if message.ecn != 0 {
            ((*at).cmsg_level, (*at).cmsg_type) = to.ecn_kind();
            (*at).cmsg_len = libc::CMSG_LEN(4) as usize;
            libc::CMSG_DATA(at).cast::<libc::c_int>().write_unaligned(libc::c_int::from(message.ecn));
            used += libc::CMSG_SPACE(4) as usize;
        }
        header.msg_controllen = used;
    }
}

/// What one read of a socket gave: a datagram, or a run of equal ones.
#[derive(Clone, Copy)]
pub struct Arrived {
    /// Octets.
    pub length: usize,
    /// Who sent it.
    pub host: Host,
    /// The `UDP_GRO` value, if there is one.
    pub stride: Option<usize>,
    /// The ECN field of the outer header.
    pub ecn: u8,
}

impl Arrived {
    /// Whether it is several datagrams, or (which looks the same) a super-packet of inner UDP.  One of inner TCP tells no
    /// stride.
    pub fn is_run(&self) -> bool {
        self.stride.is_some_and(|stride| stride < self.length)
    }
}

/// Has a socket give runs of datagrams at once.  In a daemon its owner does so; this is for tests.
#[cfg(test)]
pub fn hear_runs(fd: RawFd) -> Result<()> {
    static ONE: libc::c_int = 1;
    // SAFETY: the option's value is an int.
    let result = unsafe { libc::setsockopt(fd, SOL_UDP, UDP_GRO, (&raw const ONE).cast(), 4) };
    checked(result).map(drop)
}

/// Reads datagrams, each into its own part of the buffer, `room` octets of it.
pub fn receive_many(fd: RawFd, buffer: &mut [u8], room: usize, arrived: &mut [Arrived]) -> Result<usize> {
    let count = (buffer.len() / room).min(MESSAGES_MAX).min(arrived.len());
    // SAFETY: headers, names and slices of zeros are valid ones.
    let (mut headers, mut names, mut slices): (
        [libc::mmsghdr; MESSAGES_MAX],
        [libc::sockaddr_in6; MESSAGES_MAX],
        [libc::iovec; MESSAGES_MAX],
    ) = unsafe { (zeroed(), zeroed(), zeroed()) };
    let mut controls = [Control([0; CONTROL_ROOM]); MESSAGES_MAX];
    for (index, part) in buffer.chunks_exact_mut(room).take(count).enumerate() {
        slices[index] = libc::iovec { iov_base: part.as_mut_ptr().cast(), iov_len: room };
        let header = &mut headers[index].msg_hdr;
        header.msg_iov = &mut slices[index];
        header.msg_iovlen = 1;
        header.msg_name = (&raw mut names[index]).cast();
        header.msg_namelen = size_of::<libc::sockaddr_in6>() as u32;
        header.msg_control = controls[index].0.as_mut_ptr().cast();
        header.msg_controllen = CONTROL_ROOM;
    }
    // SAFETY: `count` headers are filled in, and all they point to outlives the call.
    let result = unsafe {
        libc::recvmmsg(fd, headers.as_mut_ptr(), count as u32, libc::MSG_DONTWAIT, std::ptr::null_mut())
    };
    let count = counted(result as isize)?;
    for index in 0..count {
        let (stride, ecn) = read_control(&headers[index].msg_hdr);
        arrived[index] = Arrived {
            length: (headers[index].msg_len as usize).min(room),
            host: host_of(&names[index]),
            stride,
            ecn,
        };
    }
    Ok(count)
}

fn host_of(name: &libc::sockaddr_in6) -> Host {
    if libc::c_int::from(name.sin6_family) == libc::AF_INET6 {
        return name.sin6_addr.s6_addr;
    }
    // SAFETY: a sockaddr_in is smaller, aligned no stricter, and any octets are one.
    let name = unsafe { &*(name as *const libc::sockaddr_in6).cast::<libc::sockaddr_in>() };
    host_v4(name.sin_addr.s_addr.to_ne_bytes())
}

fn read_control(header: &libc::msghdr) -> (Option<usize>, u8) {
    let (mut stride, mut ecn) = (None, 0);
    // SAFETY: the kernel wrote msg_controllen octets of whole control messages; the macros stay within them, and
    // the values read are within each one's own length: an int for `UDP_GRO` and for IPv6, an octet for IPv4.
    unsafe {
        let mut at = libc::CMSG_FIRSTHDR(header);
        while !at.is_null() {
            let data = libc::CMSG_DATA(at);
            match ((*at).cmsg_level, (*at).cmsg_type) {
                (SOL_UDP, UDP_GRO) => stride = Some(data.cast::<libc::c_int>().read_unaligned() as usize),
                (libc::IPPROTO_IP, libc::IP_TOS) => ecn = *data & 0b11,
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    ecn = (data.cast::<libc::c_int>().read_unaligned() & 0b11) as u8;
                }
                _ => {}
            }
            at = libc::CMSG_NXTHDR(header, at);
        }
    }
    (stride.filter(|&stride| stride > 0), ecn)
}

/// How many datagrams one send may carry: 127 since Linux 6.9, 63 before.
///
/// QUIRK(linux): UDP_MAX_SEGMENTS is 64 or 128, and many kernels count their own 8-octet UDP header among the octets
/// of those, so one less is used.  The kernel does not tell: a send to ourselves does.
pub fn segments_max() -> usize {
    const OLD: usize = 63;
    const NEW: usize = 127;
    let Ok(socket) = std::net::UdpSocket::bind("127.0.0.1:0") else { return OLD };
    let Ok(std::net::SocketAddr::V4(own)) = socket.local_addr() else { return OLD };
    let Some(address) = Address::new(&own.ip().octets(), own.port(), 0) else { return OLD };
    let octets = [0; NEW];
    let probe = Outgoing { slices: &[IoSlice::new(&octets)], segment: Some(1), ecn: 0 };
    match send_many(std::os::fd::AsRawFd::as_raw_fd(&socket), &address, &[probe]) {
        Ok(1) => NEW,
        _ => OLD,
    }
}

// ── Waiting ─────────────────────────────────────────────────────────────────────────────────────────────

/// A descriptor of our own, closed with it.
pub struct Owned(RawFd);

impl Owned {
    /// Another descriptor of the same thing, which lives on when the first is closed.
    pub fn duplicate(fd: RawFd) -> Result<Owned> {
        // SAFETY: it has no pointers.
        Ok(Owned(checked(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) })?))
    }

    /// Its number.
    pub fn fd(&self) -> RawFd {
        self.0
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: it is ours, and this is the only place that closes it.
        unsafe { libc::close(self.0) };
    }
}

/// A bell: rung by one thread, heard by another through its descriptor.
pub struct Bell(Owned);

impl Bell {
    /// A silent one.
    pub fn new() -> Result<Bell> {
        // SAFETY: it has no pointers.
        Ok(Bell(Owned(checked(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?)))
    }

    /// Readable while it rings.
    pub fn fd(&self) -> RawFd {
        self.0.0
    }

    /// Rings until it is silenced.
    pub fn ring(&self) {
        let _ = write(self.fd(), &[IoSlice::new(&1u64.to_ne_bytes())]); // full is rung, too
    }

    /// Silences it.
    pub fn silence(&self) {
        let _ = read(self.fd(), &mut [0; 8]); // silent already is fine
    }
}

/// What waits for several descriptors at once.
pub struct Waiter(Owned);

impl Waiter {
    /// One that waits for nothing yet.
    pub fn new() -> Result<Waiter> {
        // SAFETY: it has no pointers.
        Ok(Waiter(Owned(checked(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?)))
    }

    /// Waits for this one too; what it says is named by the token.
    pub fn watch(&self, fd: RawFd, token: u64) -> Result<()> {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: token };
        // SAFETY: the kernel only reads the event.
        checked(unsafe { libc::epoll_ctl(self.0.0, libc::EPOLL_CTL_ADD, fd, &mut event) }).map(drop)
    }

    /// Waits for it no more.  One that is closed already has gone by itself.
    pub fn unwatch(&self, fd: RawFd) {
        // SAFETY: deleting reads no event.
        unsafe { libc::epoll_ctl(self.0.0, libc::EPOLL_CTL_DEL, fd, std::ptr::null_mut()) };
    }

    /// The tokens of those that are readable, at once or (with `sleeps`) when there are some.
    pub fn wait(&self, tokens: &mut Vec<u64>, sleeps: bool) {
        const EVENTS: usize = 32;
        tokens.clear();
        // SAFETY: events of zeros are valid ones; the kernel writes at most EVENTS of them.
        let (count, events) = unsafe {
            let mut events: [libc::epoll_event; EVENTS] = zeroed();
            let timeout = if sleeps { -1 } else { 0 };
            (libc::epoll_wait(self.0.0, events.as_mut_ptr(), EVENTS as i32, timeout), events)
        };
        tokens.extend(events[..count.max(0) as usize].iter().map(|event| event.u64));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn a_thread_that_shares_its_core_is_told_that_it_waits() {
        let usable = crate::testing::usable_core();
        let is_over = Arc::new(AtomicBool::new(false));
        let other_ends = is_over.clone();
        let other = std::thread::spawn(move || {
            while !other_ends.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        let waiter = std::thread::spawn(move || {
            let waits = CoreWaits::open().unwrap();
            let (before, deadline) = (waits.seconds().unwrap(), now() + 10.0);
            while waits.seconds().unwrap() - before < 0.01 && now() < deadline {}
            waits.seconds().unwrap() - before
        });
        let pinned = pin(&other, usable).and(pin(&waiter, usable));
        let waited = waiter.join();
        is_over.store(true, Ordering::Relaxed); // before anything here can fail: it would spin on
        other.join().unwrap();
        pinned.unwrap();
        assert!(waited.unwrap() >= 0.01);
    }

    #[test]
    fn a_run_is_several_datagrams() {
        let arrived = |length, stride| Arrived { length, host: [0; 16], stride, ecn: 0 };
        let runs =
            [arrived(300, None), arrived(300, Some(300)), arrived(300, Some(150)), arrived(300, Some(299))];
        assert_eq!(runs.map(|each| each.is_run()), [false, false, true, true]);
    }

    #[test]
    fn a_segmented_send_arrives_with_its_stride_and_mark() {
        static ONE: libc::c_int = 1;
        let receiver = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let fd = receiver.as_raw_fd();
        hear_runs(fd).unwrap();
        // SAFETY: the option's value is an int.
        let result =
            unsafe { libc::setsockopt(fd, libc::IPPROTO_IP, libc::IP_RECVTOS, (&raw const ONE).cast(), 4) };
        assert_eq!(result, 0);
        let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = Address::new(&[127, 0, 0, 1], receiver.local_addr().unwrap().port(), 0).unwrap();
        let octets = [7u8; 250];
        let slices = [IoSlice::new(&octets[..10]), IoSlice::new(&octets[10..])];
        let sent =
            send_many(sender.as_raw_fd(), &to, &[Outgoing { slices: &slices, segment: Some(100), ecn: 2 }]);
        assert_eq!(sent.unwrap(), 1);
        let mut buffer = vec![0; 4 * 65_536];
        let mut arrived = [Arrived { length: 0, host: [0; 16], stride: None, ecn: 0 }; 4];
        let deadline = now() + 5.0;
        let count = loop {
            match receive_many(fd, &mut buffer, 65_536, &mut arrived) {
                Ok(count) => break count,
                Err(error) => assert!(errno(&error) == libc::EAGAIN && now() < deadline),
            }
        };
        assert_eq!(count, 1);
        let Arrived { length, host, stride, ecn } = arrived[0];
        assert_eq!((length, host, stride, ecn), (250, host_v4([127, 0, 0, 1]), Some(100), 2));
    }

    #[test]
    fn a_bell_is_heard_until_it_is_silenced() {
        let (bell, waiter) = (Bell::new().unwrap(), Waiter::new().unwrap());
        waiter.watch(bell.fd(), 5).unwrap();
        let mut tokens = vec![];
        waiter.wait(&mut tokens, false);
        assert!(tokens.is_empty());
        bell.ring();
        bell.ring();
        waiter.wait(&mut tokens, true);
        assert_eq!(tokens, [5]);
        bell.silence();
        waiter.wait(&mut tokens, false);
        assert!(tokens.is_empty());
    }

    #[test]
    fn a_send_carries_at_least_what_old_kernels_take() {
        assert!([63, 127].contains(&segments_max()));
    }
}
