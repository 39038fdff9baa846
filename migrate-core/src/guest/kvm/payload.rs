//! The guest's code: a writer's operations, one after the other, in plain integer instructions.
//!
//! What it computes is docs/page-format.md: the slot of operation k (a ring, or the permutation of
//! `uniform`), its generation, and the stamped lines of its record, ascending; then the operation
//! counter in memory. It needs no stack and no interrupts, and uses every general register but rsp.
//!
//! | register | holds |
//! |---|---|
//! | rbx | the vCPU's page ([`Parameters`]) |
//! | r15 | k: the operation that is next, or under way |
//! | r14 | operations that may be done before the port is asked again |

use std::arch::global_asm;

use workload::content::ContentSpec;
use workload::pattern::Simple;
use workload::spec::{Share, Workload};

use super::layout::Layout;
use super::sys;
use crate::guest::GuestError;

/// The port of which a vCPU asks, by a read of four bytes, how many operations are due.
pub(super) const PORT: u16 = 0x10;

/// A vCPU's page: its counter, and constants. The payload knows the offsets.
struct Parameters {
    operations: u64,
    /// 0 a ring, 1 the permutations of `uniform`.
    kind: u64,
    slots: u64,
    key: u64,
    mask: u64,
    shift: u64,
    first_line: u64,
    record_lines: u64,
    place: u64,
    age: u64,
    multipliers: [u64; 2],
    body: [u64; 6],
}

impl Parameters {
    fn of(workload: &Workload, index: usize, share: &Share) -> Self {
        let ([place, age], multipliers, body) = workload.key().constants();
        let (kind, slots, key) = match share.pattern.simple() {
            Some(Simple::Uniform { slots, key }) => (1, slots, key),
            Some(Simple::Ring { slots }) => (0, slots, 0),
            None => unreachable!("a pattern that the payload knows"),
        };
        let bits = u64::from((64 - (slots - 1).leading_zeros()).max(1));
        Self {
            operations: 0,
            kind,
            slots,
            key,
            mask: u64::MAX >> (64 - bits),
            shift: bits.div_ceil(2),
            first_line: workload.slot_line(index, 0),
            record_lines: workload.record_lines(),
            place,
            age,
            multipliers,
            body,
        }
    }

    fn words(&self) -> Vec<u64> {
        let mut words = vec![
            self.operations,
            self.kind,
            self.slots,
            self.key,
            self.mask,
            self.shift,
            self.first_line,
            self.record_lines,
            self.place,
            self.age,
        ];
        words.extend(self.multipliers);
        words.extend(self.body);
        words
    }
}

global_asm!(
    r#"
    .pushsection .rodata.vmigrate_payload, "a"
    .balign 16

# mix: two multiplications, each with the upper half folded down. Uses a second register.
.macro VMIGRATE_MIX reg, tmp
    imul \reg, qword ptr [rbx + 80]
    mov \tmp, \reg
    shr \tmp, 32
    xor \reg, \tmp
    imul \reg, qword ptr [rbx + 88]
    mov \tmp, \reg
    shr \tmp, 32
    xor \reg, \tmp
.endm

# One body word: two stamps, each turned, and a constant.
.macro VMIGRATE_BODY index, left, left_turn, right, right_turn
    mov r8, \left
    rol r8, \left_turn
    mov r9, \right
    rol r9, \right_turn
    xor r8, r9
    add r8, qword ptr [rbx + 96 + 8 * \index]
    mov qword ptr [rdi + 16 + 8 * \index], r8
.endm

    .global vmigrate_payload_start
    .global vmigrate_payload_end
vmigrate_payload_start:
2:
    test r14, r14
    jnz 3f
    in eax, 0x10
    mov r14d, eax
    jmp 2b
3:
    dec r14
    # epoch = k / slots, position = k mod slots
    mov rax, r15
    xor edx, edx
    div qword ptr [rbx + 16]
    lea rbp, [rax + 1]
    cmp qword ptr [rbx + 8], 0
    je 5f
    # k0 = mix(key ^ epoch), k1 = mix(k0 ^ rotl(key, 17))
    mov r8, qword ptr [rbx + 24]
    mov r9, r8
    xor r8, rax
    VMIGRATE_MIX r8, r12
    rol r9, 17
    xor r9, r8
    VMIGRATE_MIX r9, r12
    # add0 = mix(k1), add1 = mix(k0 ^ k1)
    mov r10, r9
    VMIGRATE_MIX r10, r12
    mov r11, r8
    xor r11, r9
    VMIGRATE_MIX r11, r12
    or r8, 1
    or r9, 1
    mov rcx, qword ptr [rbx + 40]
4:
    add rdx, r10
    imul rdx, r8
    and rdx, qword ptr [rbx + 32]
    mov r12, rdx
    shr r12, cl
    xor rdx, r12
    add rdx, r11
    imul rdx, r9
    and rdx, qword ptr [rbx + 32]
    mov r12, rdx
    shr r12, cl
    xor rdx, r12
    cmp rdx, qword ptr [rbx + 16]
    jae 4b
5:
    # rdx = address of the first line; rdi = where it lies
    imul rdx, qword ptr [rbx + 56]
    add rdx, qword ptr [rbx + 48]
    mov rdi, rdx
    shl rdi, 6
    mov rcx, qword ptr [rbx + 56]
    mov r13, qword ptr [rbx + 64]
    mov r12, qword ptr [rbx + 72]
6:
    mov rax, rdx
    xor rax, r13
    VMIGRATE_MIX rax, r8
    mov qword ptr [rdi], rax
    mov rsi, rax
    rol rsi, 32
    xor rsi, rbp
    xor rsi, r12
    VMIGRATE_MIX rsi, r8
    mov qword ptr [rdi + 8], rsi
    VMIGRATE_BODY 0, rax, 0, rsi, 13
    VMIGRATE_BODY 1, rsi, 0, rax, 13
    VMIGRATE_BODY 2, rax, 0, rsi, 50
    VMIGRATE_BODY 3, rsi, 0, rax, 50
    VMIGRATE_BODY 4, rax, 13, rsi, 50
    VMIGRATE_BODY 5, rsi, 13, rax, 50
    inc rdx
    add rdi, 64
    dec rcx
    jnz 6b
    # The record is complete: the counter says so.
    inc r15
    mov qword ptr [rbx], r15
    jmp 2b
vmigrate_payload_end:
    .popsection
"#
);

/// The payload, which may stand anywhere, and what each vCPU's writer needs to know, as words at
/// their guest-physical addresses. The workload passed [`check`].
pub(super) fn words(layout: &Layout, workload: &Workload) -> Vec<(u64, u64)> {
    let mut words = Vec::new();
    for (code, index) in sys::payload().chunks(8).zip(0..) {
        let mut word = [0; 8];
        word[..code.len()].copy_from_slice(code);
        words.push((layout.code() + 8 * index, u64::from_le_bytes(word)));
    }
    for (index, share) in workload.shares().iter().enumerate() {
        let parameters = Parameters::of(workload, index, share).words();
        let places = (layout.parameters(index)..).step_by(8);
        words.extend(places.zip(parameters));
    }
    words
}

/// Whether the payload can do what the workload asks.
pub(super) fn check(workload: &Workload) -> Result<(), GuestError> {
    let why = if workload.spec().workload.content != ContentSpec::Random {
        "guest code under KVM writes content 'random' only"
    } else if workload.shares().iter().any(|share| share.pattern.simple().is_none()) {
        "guest code under KVM follows the patterns 'stream' and 'uniform' only"
    } else if workload.spec().workload.pattern == workload::profile::PatternSpec::Touch {
        "guest code under KVM writes whole records, not 'touch'"
    } else if workload.spec().run().is_none() {
        "guest code under KVM writes page format 2 only"
    } else if workload.spec().memory.0 > Layout::workload_bytes_max() {
        "guests under KVM have at most 511 GiB"
    } else {
        return Ok(());
    };
    Err(GuestError::new("start the guest", why))
}
