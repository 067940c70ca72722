//! What the programs cost to load.

use weir_common::Direction;
use weir_tests::testrun::{Programs, Sizes};

/// The kernel walks at most a million instructions before it refuses a program, and how many a program takes differs
/// from kernel to kernel. And every agent start waits for two such walks.
const LIMIT: u32 = 60_000;

#[test]
fn the_verifier_has_little_work_with_each_program() {
    let mut programs = Programs::load(Sizes::default()).expect("the kernel takes the programs");
    for direction in [Direction::Egress, Direction::Ingress] {
        let verified = programs
            .verified_instructions(direction)
            .expect("the kernel tells how many instructions it walked");
        assert!(
            verified <= LIMIT,
            "{direction:?}: the verifier walked {verified} instructions, more than {LIMIT} (some kernels walk several \
             times as many, all refuse more than 1,000,000, and an agent start waits for it): what has multiplied \
             should become a stage, see ebpf/src/stage.rs"
        );
    }
}
