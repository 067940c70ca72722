//! The project's front door.

mod bpf;

fn main() {
    match bpf::Toolchain::find() {
        Ok(toolchain) => println!("{toolchain}"),
        Err(error) => println!("{error}"),
    }
}
