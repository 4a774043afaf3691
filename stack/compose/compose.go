// Package compose turns compose files into the spec of a stack.
//
// It reads the compose specification, the files of "docker stack deploy" and the output of
// "docker compose config". It knows nothing of a cluster: package stack plans and
// deploys what it returns. A key that Muster cannot honour is an error that names the
// file, the line and the key, unless the caller asks to ignore such keys.
package compose

import (
	"fmt"
	"io"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// Options say what Load reads, and with which variables.
type Options struct {
	// Files are compose files, later ones on top of earlier ones. "-" is Stdin. Without
	// any, Load looks for a file with a usual name in WorkingDir and, unless it is given,
	// in the directories above.
	Files []string
	// Stdin is what is read for the file "-".
	Stdin io.Reader
	// Name is the stack's name. Empty: the variable COMPOSE_PROJECT_NAME, then the key
	// "name" of the files, then the name of the working directory.
	Name string
	// WorkingDir is what relative paths are resolved against. Empty: the directory of
	// the first file, or the current directory for "-".
	WorkingDir string
	// EnvFiles hold variables for interpolation. Empty: ".env" in WorkingDir, if there is
	// one.
	EnvFiles []string
	// Environment holds variables for interpolation as "KEY=value"; they win over those
	// of EnvFiles. Usually os.Environ().
	Environment []string
	// Profiles are active profiles. Empty: the variable COMPOSE_PROFILES.
	Profiles []string
	// IgnoreUnsupported leaves out what Muster cannot honour, and lists it in
	// Result.Ignored.
	IgnoreUnsupported bool
	// Builds takes services with "build" and lists them in Result.Builds. Without it,
	// "build" is refused for services that have no image.
	Builds bool
}

// Result is what Load makes of compose files.
type Result struct {
	// Spec is the stack. The secrets have their data.
	Spec *musterv1.StackSpec
	// External objects must exist in the cluster.
	External []External
	// Ignored lists what has no effect: keys that never have, and with
	// Options.IgnoreUnsupported those that Muster cannot honour.
	Ignored []Problem
	// Warnings are mistakes that are likely, such as variables that are not set.
	Warnings []Problem
	// Builds are images to build before the stack is deployed.
	Builds []Build
}

// Kind is the kind of an external object.
type Kind string

// The kinds of external objects.
const (
	Network Kind = "network"
	Secret  Kind = "secret"
	Config  Kind = "config"
)

// External is an object that the stack uses and does not own.
type External struct {
	Kind Kind
	Name string
}

// Build is an image that a service needs built.
type Build struct {
	// Service is the service's full name.
	Service string
	// Image is the name that the service's spec has for the image.
	Image string
	// Config is the service's key "build", with absolute paths.
	Config *types.BuildConfig
}

// Problem is a key of a compose file that has no effect, that cannot be honoured, or that
// deserves a look.
type Problem struct {
	// File is the file's path as it was given, or "-".
	File string
	// Line counts from 1. 0 means that the key is not in the file, but was derived.
	Line int
	// Key is the path of the key: "services.web.privileged".
	Key string
	// Reason says why, and what to do instead.
	Reason string
	// Unsupported keys can be left out with Options.IgnoreUnsupported.
	Unsupported bool
}

// String returns "file:line: key: reason".
func (p Problem) String() string {
	at := p.File
	if p.Line > 0 {
		at += fmt.Sprintf(":%d", p.Line)
	}
	if at != "" {
		at += ": "
	}
	return at + p.Key + ": " + p.Reason
}

// Error lists everything that keeps compose files from becoming a stack.
type Error struct {
	Problems []Problem
}

// Error returns the problems, one on each line, and the way out.
func (e *Error) Error() string {
	lines := make([]string, 0, len(e.Problems)+1)
	unsupported := 0
	for _, p := range e.Problems {
		lines = append(lines, p.String())
		if p.Unsupported {
			unsupported++
		}
	}
	if unsupported > 0 {
		lines = append(lines, "use --ignore-unsupported to deploy without what is not supported")
	}
	return strings.Join(lines, "\n")
}
