//! A link that misbehaves: relays connections to a destination and breaks a rule on the way.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const HELLO_BYTES: usize = 80;
const WELCOME_BYTES: usize = 56;
const HEADER_BYTES: usize = 40;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The first control connection is cut when Run (8) would pass.
    CutAtRun,
    /// Every control connection is cut when Run (8) would pass: the destination never hears it.
    CutAtEveryRun,
    /// The first control connection is cut when Run (8) would pass, and no other is let through.
    DeadAtRun,
    /// The first control connection is cut when Running (9) would pass.
    CutAtRunning,
    /// A Pages frame (3) whose pages were sent again is delivered once more before EndOfPages (5).
    OldCopyLast,
    /// The last Pages frame before EndOfPages is not delivered.
    DropLast,
    /// The last Pages frame before EndOfPages is delivered after it.
    LateShard,
    /// One bit of a page in the third quarter of the first 64 MiB is flipped.
    FlipBit,
    /// The first Lines frame (16) is not delivered: later ones go over the wrong base.
    DropDelta,
    /// ZeroPages frames (4) are not delivered.
    DropZero,
}

/// Starts relaying to `to`; returns where to connect.
pub fn start(to: SocketAddr, rule: Rule) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let broken = Arc::new(AtomicBool::new(false));
    std::thread::spawn(move || {
        while let Ok((near, _)) = listener.accept() {
            if rule == Rule::DeadAtRun && broken.load(Ordering::Acquire) {
                continue;
            }
            let Ok(far) = TcpStream::connect(to) else { return };
            let (near_back, far_back) = (near.try_clone().unwrap(), far.try_clone().unwrap());
            let (there, back) = (broken.clone(), broken.clone());
            std::thread::spawn(move || relay(near, far, HELLO_BYTES, rule, &there));
            std::thread::spawn(move || relay(far_back, near_back, WELCOME_BYTES, rule, &back));
        }
    });
    address
}

fn relay(mut from: TcpStream, mut to: TcpStream, greeting: usize, rule: Rule, broken: &AtomicBool) {
    let _ = relay_frames(&mut from, &mut to, greeting, rule, broken);
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

fn relay_frames(
    from: &mut TcpStream,
    to: &mut TcpStream,
    greeting: usize,
    rule: Rule,
    broken: &AtomicBool,
) -> std::io::Result<()> {
    let mut hello = vec![0; greeting];
    from.read_exact(&mut hello)?;
    to.write_all(&hello)?;
    let (mut stale, mut held): (Option<Vec<u8>>, Option<Vec<u8>>) = (None, None);
    let mut sent: BTreeMap<u64, (u64, Vec<u8>)> = BTreeMap::new();
    loop {
        let mut frame = vec![0; HEADER_BYTES];
        from.read_exact(&mut frame)?;
        let kind = u16::from_le_bytes([frame[0], frame[1]]);
        let length = u32::from_le_bytes([frame[4], frame[5], frame[6], frame[7]]) as usize;
        frame.resize(HEADER_BYTES + length, 0);
        from.read_exact(&mut frame[HEADER_BYTES..])?;
        let cut = match rule {
            Rule::CutAtRun | Rule::CutAtEveryRun | Rule::DeadAtRun => kind == 8,
            Rule::CutAtRunning => kind == 9,
            _ => false,
        };
        if cut && (!broken.swap(true, Ordering::AcqRel) || rule == Rule::CutAtEveryRun) {
            return Ok(());
        }
        match (rule, kind) {
            (Rule::OldCopyLast, 3) => {
                let at = |i| u64::from_le_bytes(frame[i..i + 8].try_into().unwrap());
                let (group, mask) = (at(16), at(24));
                // What came first for a page that comes again.
                if let Some((_, old)) = sent.get(&group).filter(|(older, _)| older & mask != 0) {
                    stale.get_or_insert(old.clone());
                }
                sent.entry(group).or_insert((mask, frame.clone()));
            }
            (Rule::OldCopyLast, 5) => to.write_all(&stale.take().unwrap_or_default())?,
            (Rule::DropLast | Rule::LateShard, 3) => {
                if let Some(frame) = held.replace(frame) {
                    to.write_all(&frame)?;
                }
                continue;
            }
            (Rule::DropLast, 5) => held = None,
            (Rule::LateShard, 5) => {
                to.write_all(&frame)?;
                frame = held.take().unwrap_or_default();
            }
            (Rule::FlipBit, 3) => {
                let page = u64::from_le_bytes(frame[16..24].try_into().unwrap());
                if (4096..4160).contains(&page) {
                    let last = frame.len() - 1000;
                    frame[last] ^= 0x10;
                }
            }
            (Rule::DropDelta, 16) if !broken.swap(true, Ordering::AcqRel) => continue,
            (Rule::DropZero, 4) => continue,
            _ => {}
        }
        to.write_all(&frame)?;
    }
}
