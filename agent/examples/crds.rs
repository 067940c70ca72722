//! Writes the CustomResourceDefinitions of Calico's kinds into the directories given: `cargo xtask crds`.

use std::{env, error::Error, fs, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    let files = weir::api::calico::crd::files()?;
    for dir in env::args_os().skip(1) {
        let dir = Path::new(&dir);
        fs::create_dir_all(dir)?;
        // What is no longer generated goes.
        for entry in fs::read_dir(dir)? {
            let name = entry?.file_name();
            if name != "kustomization.yaml" {
                fs::remove_file(dir.join(name))?;
            }
        }
        for (name, text) in &files {
            fs::write(dir.join(name), text)?;
        }
    }
    Ok(())
}
