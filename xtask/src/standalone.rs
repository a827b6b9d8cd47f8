//! The server with nothing around it: one static file, run in an empty root, and the image that holds it alone.

use std::path::PathBuf;
use std::process::Command;

use crate::demo::Server;
use crate::package::{self, DIST, Profile, fresh_folder, installed_program};
use crate::step::{During, Outcome, Project, Steps, Stop, failed, output, run, succeeds};

/// By glibc, which this machine has; musl's target would be one more to bring here.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Where it is compiled: its flags are no others'.
const BUILT: &str = "target/static";
/// The root that it runs in.
const ROOT: &str = "target/fresh/chroot";

/// Adds the step that builds and runs it, and for a release the image's.
pub(crate) fn add<'a>(steps: &mut Steps<'a>, project: &'a Project, profile: Profile) {
    steps.add(
        "package: static",
        "valkyrie-server as one static file: started in an empty root, called, probed, ended",
        &["package: rust"],
        move || static_server(project, profile),
    );
    if profile == Profile::Dist {
        let about = "the Dockerfile, where there is a daemon of Docker";
        steps.add("package: image", about, &[], || image(project));
    }
}

/// The checks' is a debug build, which takes a fourth of the time; a release has its own profile's.
fn static_server(project: &Project, profile: Profile) -> Outcome {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64", target_env = "gnu")) {
        return Err(Stop::Skipped(format!("it is built for {TARGET} only, on that")));
    }
    let (cargo_profile, folder) = match profile {
        Profile::Release => ("dev", "debug"),
        Profile::Dist => ("dist", "dist"),
    };
    let mut build = project.cargo(["build", "--quiet", "--locked", "-p", "valkyrie-server"]);
    build.args(["--profile", cargo_profile, "--target", TARGET, "--target-dir", BUILT]);
    // With a target named, neither build scripts nor macros are compiled so.
    run(build.env("RUSTFLAGS", "-C target-feature=+crt-static"))?;
    let built = project.path(BUILT).join(TARGET).join(folder).join("valkyrie-server");

    let root = fresh_folder(project, ROOT)?;
    package::copy(&built, &root.join("valkyrie-server"))?;
    let mut start = in_root(project, &root)?;
    start.args(["start", "--bind", "127.0.0.1:0", "--admin", "unix:///admin", "--log-level", "error"]);
    let server = Server::spawn(start)?;
    let mut send = project.command(installed_program(project, "valkyrie"));
    let hello = output(send.args(["send", "--message", "Hello", "--endpoint", server.endpoint("tcp")?]))?;
    if hello != "Hello" {
        return failed(format!("it answered {hello:?} and not Hello"));
    }
    let ready = output(in_root(project, &root)?.args(["probe", "unix:///admin"]))?;
    if ready.trim() != "ready" {
        return failed(format!("it says that it is {ready:?} and not ready"));
    }
    server.terminate()?;
    server.ends_well()?;
    let size = std::fs::metadata(&built).during(built.display())?.len();
    if profile == Profile::Dist {
        let name = format!("{DIST}/valkyrie-server-{}-linux-x64-static", project.version());
        package::copy(&built, &project.path(&name))?;
    }
    Ok(format!("{:.1} MB, {cargo_profile}", size as f64 / 1e6))
}

/// The program of that root. Only root may change it.
fn in_root(project: &Project, root: &PathBuf) -> Outcome<Command> {
    let is_root = output(project.command("id").arg("-u"))?.trim() == "0";
    let mut command = project.command(if is_root { "chroot" } else { "sudo" });
    if !is_root {
        if !succeeds(project.command("sudo").args(["-n", "true"])) {
            return Err(Stop::Skipped("only root may call chroot, and sudo asks for a password".into()));
        }
        command.args(["-n", "chroot"]);
    }
    command.arg(root).arg("/valkyrie-server");
    Ok(command)
}

fn image(project: &Project) -> Outcome {
    if !succeeds(project.command("docker").arg("info")) {
        return Ok("there is no daemon of Docker here: the Dockerfile was not tried".into());
    }
    let tag = format!("valkyrie-server:{}", project.version());
    run(project.command("docker").args(["build", "--quiet", "--tag", &tag, "."]))?;
    Ok(tag)
}
