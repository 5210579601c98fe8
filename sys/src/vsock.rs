//! Addresses of AF_VSOCK, which rustix does not have.

use linux_raw_sys::vm_sockets::sockaddr_vm;
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, SocketAddrAny};

/// A virtual machine or host, and a port there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VsockAddr {
    /// Whom: 2 is the host, 1 this machine itself, [`VsockAddr::ANY`] all of mine when listening.
    pub cid: u32,
    /// Where there; [`VsockAddr::ANY`] lets the kernel choose.
    pub port: u32,
}

impl VsockAddr {
    /// Any, of both.
    pub const ANY: u32 = u32::MAX;

    /// Of what the kernel says, if that is such an address.
    pub fn of(address: &SocketAddrAny) -> Option<Self> {
        let is_one = address.address_family() == AddressFamily::VSOCK
            && address.addr_len() as usize >= std::mem::offset_of!(sockaddr_vm, svm_flags);
        // SAFETY: the storage behind the pointer is that of any address, larger than this one and
        // zero where the kernel wrote nothing; any bytes are a value of plain numbers.
        is_one.then(|| unsafe {
            let raw = address.as_ptr().cast::<sockaddr_vm>();
            Self {
                cid: (&raw const (*raw).svm_cid).read_unaligned(),
                port: (&raw const (*raw).svm_port).read_unaligned(),
            }
        })
    }
}

// SAFETY: the closure gets a whole `sockaddr_vm` that outlives the call, and its length.
unsafe impl SocketAddrArg for VsockAddr {
    unsafe fn with_sockaddr<R>(
        &self,
        f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R,
    ) -> R {
        let raw = Raw {
            family: AddressFamily::VSOCK.as_raw(),
            reserved: 0,
            port: self.port,
            cid: self.cid,
            flags_and_zero: [0; 4],
        };
        f((&raw const raw).cast(), size_of::<Raw>() as SocketAddrLen)
    }
}

/// As the kernel wants it: 16 bytes (`sockaddr_vm` of linux-raw-sys is longer than it takes).
#[repr(C)]
struct Raw {
    family: u16,
    reserved: u16,
    port: u32,
    cid: u32,
    flags_and_zero: [u8; 4],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_survives_the_kernel_form() {
        let address = VsockAddr { cid: 3, port: 77 };
        assert_eq!(VsockAddr::of(&address.as_any()), Some(address));
        let other = std::net::SocketAddr::from(([127, 0, 0, 1], 5)).as_any();
        assert_eq!(VsockAddr::of(&other), None);
    }
}
