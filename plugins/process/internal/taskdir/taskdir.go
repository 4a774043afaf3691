//go:build linux

// Package taskdir is the state of process tasks on disk: what an executor's
// process, the next one after it, and the supervisors of the tasks tell each
// other. It holds no memory of its own. Beneath the root:
//
//	tasks/<id>/spec.json        what to run; there before anything else (Create)
//	tasks/<id>/lock             held by the supervisor from before it is started
//	                            until it has said how the task ended
//	tasks/<id>/supervisor.json  which process the supervisor is
//	tasks/<id>/network.json     the network namespace of a networked task
//	tasks/<id>/resolv.conf      what the task sees as /etc/resolv.conf, if it is networked
//	tasks/<id>/hosts            what it sees as /etc/hosts
//	tasks/<id>/begun            the command may have been started
//	tasks/<id>/run.json         the command was started
//	tasks/<id>/health.json      what the health check of a task that has one says
//	tasks/<id>/exit.json        how it ended, or why it could not be started
//	tasks/<id>/log, log.1       what it wrote (package logfile)
//	tasks/<id>/supervisor.log   what went wrong with the supervisor itself
//	new/<id>/                   a task directory that is being made
//	trash/<id>/                 a task directory that is being removed
//
// A task directory appears and disappears by one rename, and each file in it but
// the logs is written by one rename, and only those of the network and of the health
// check more than once. Nothing is forced to the disk: a machine that loses power may have files of no length (ErrDamaged) or none, and then
// nothing of the task runs. The lock is one of an open file
// (F_OFD_SETLK): the executor takes it, hands the open file to the supervisor it
// starts, so that no other process can start the task in between; the kernel frees it
// when the supervisor is gone, whatever it died of. So
//
//	no begun                     the task has not been started
//	begun, lock held             it runs, or is about to, or has just ended
//	exit.json                    it has ended
//	begun, lock free, no exit    its supervisor was killed, or the machine went
//	                             down: the exit code is lost
//
// The room for run.json and exit.json is taken before the command is started, so
// that a full disk does not keep a task from running, nor from having ended.
package taskdir

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/musterhq/muster/plugins/process/internal/cgroup"
	"github.com/musterhq/muster/plugins/process/internal/proc"
)

// Version is the version of the files' form.
const Version = 1

// ErrNotFound means that there is no such task.
var ErrNotFound = errors.New("no such task")

// ErrDamaged means that a file is not what was written.
var ErrDamaged = errors.New("the file is damaged")

// Spec says what to run. Nothing in it is left to be looked up.
type Spec struct {
	Version int    `json:"v"`
	ID      string `json:"id"`
	NodeID  string `json:"node"`
	// Path is the program's file, Args what it is given, its name first.
	Path string   `json:"path"`
	Args []string `json:"args"`
	Env  []string `json:"env"`
	Dir  string   `json:"dir"`
	// User is nil if the command runs as its executor does.
	User       *User         `json:"user,omitempty"`
	StopSignal unix.Signal   `json:"stopSignal"`
	Grace      time.Duration `json:"grace"`
	Limits     cgroup.Limits `json:"limits"`
	// LogMax is the size of a log file, of which there are two.
	LogMax int64 `json:"logMax"`
	// Ports are the ports of the node that the task publishes. It is nil if an
	// earlier version prepared the task.
	Ports []Port `json:"ports"`
	// Networked is true if the command runs in a network namespace of its own.
	Networked bool `json:"networked,omitempty"`
	// Check is the health check, or nil.
	Check *Check `json:"check,omitempty"`
	// Mounts are what the command sees of the worker's files, read-only.
	Mounts []Mount `json:"mounts,omitempty"`
}

// Mount is a file or directory of the node that the command sees elsewhere.
type Mount struct {
	Source string `json:"source"`
	Target string `json:"target"`
	// Dir says that it is a directory, which is made if it is not there.
	Dir bool `json:"dir,omitempty"`
}

// Check is a health check: a command or a TCP port.
type Check struct {
	// Path and Args are those of the command. Path is empty if Port is set.
	Path string   `json:"path,omitempty"`
	Args []string `json:"args,omitempty"`
	// Port is the port of 127.0.0.1 that must accept connections.
	Port          uint16        `json:"port,omitempty"`
	Interval      time.Duration `json:"interval"`
	Timeout       time.Duration `json:"timeout"`
	StartPeriod   time.Duration `json:"startPeriod"`
	StartInterval time.Duration `json:"startInterval"`
	Retries       uint32        `json:"retries"`
}

// Health is what a health check says of a running task.
type Health struct {
	// Succeeded is true once a check has succeeded.
	Succeeded bool `json:"succeeded,omitempty"`
	// Failed is how many of the latest checks failed, in a row, and Retries how many
	// make the task unhealthy.
	Failed  uint32 `json:"failed,omitempty"`
	Retries uint32 `json:"retries"`
	// Code and Output are those of the latest check if it failed.
	Code   int32  `json:"code,omitempty"`
	Output string `json:"output,omitempty"`
}

// Unhealthy reports whether so many checks failed that the task is stopped.
func (h *Health) Unhealthy() bool { return h.Failed >= h.Retries }

// Port is a port of the node that a task publishes.
type Port struct {
	Name string `json:"name,omitempty"`
	// Protocol is the contract's number.
	Protocol  int32  `json:"protocol"`
	Target    uint32 `json:"target"`
	Published uint32 `json:"published"`
}

// User is whom a command runs as.
type User struct {
	UID    uint32   `json:"uid"`
	GID    uint32   `json:"gid"`
	Groups []uint32 `json:"groups"`
}

// Marker is a variable that is in the environment of a task's processes and of
// no others.
func (s Spec) Marker() string { return "MUSTER_TASK_ID=" + s.ID }

// Run tells of a command that was started.
type Run struct {
	Command proc.Identity `json:"command"`
	At      time.Time     `json:"at"`
	// Cgroups are the control groups that hold it.
	Cgroups []string `json:"cgroups,omitempty"`
}

// Exit tells how a task ended.
type Exit struct {
	At        time.Time `json:"at"`
	Code      int32     `json:"code"`
	OOMKilled bool      `json:"oomKilled,omitempty"`
	// StartError says why the command could not be started, if it could not.
	StartError string `json:"startError,omitempty"`
	// Lost says why the exit code is not known, if it is not.
	Lost string `json:"lost,omitempty"`
	// Unhealthy is what the health check said, if the task was stopped because of it.
	Unhealthy *Health `json:"unhealthy,omitempty"`
}

// The files of a task directory.
const (
	specFile       = "spec.json"
	lockFile       = "lock"
	supervisorFile = "supervisor.json"
	begunFile      = "begun"
	networkFile    = "network.json"
	resolvConfFile = "resolv.conf"
	hostsFile      = "hosts"
	runFile        = "run.json"
	healthFile     = "health.json"
	exitFile       = "exit.json"
	// SupervisorLog is where a supervisor writes what goes wrong.
	SupervisorLog = "supervisor.log"
)

// Dir is one task's directory.
type Dir string

// ID returns the task's id.
func (d Dir) ID() string { return filepath.Base(string(d)) }

// Spec reads what to run.
func (d Dir) Spec() (Spec, error) {
	var spec Spec
	found, err := d.read(specFile, &spec)
	if err != nil {
		return Spec{}, err
	}
	if !found {
		return Spec{}, ErrNotFound
	}
	if spec.Version != Version {
		return Spec{}, fmt.Errorf("read task %s: its version is %d, and this executor knows %d", filepath.Base(string(d)), spec.Version, Version)
	}
	return spec, nil
}

// Network is the network of a networked task.
type Network struct {
	// Namespace is the path of the network namespace.
	Namespace string `json:"namespace"`
	// ResolvConf is true if the task does not use the node's resolv.conf.
	ResolvConf bool `json:"resolvConf,omitempty"`
}

// SetNetwork says which network the task has. An empty resolv.conf leaves it the node's.
func (d Dir) SetNetwork(namespace, resolvConf, hosts string) error {
	for name, text := range map[string]string{resolvConfFile: resolvConf, hostsFile: hosts} {
		if err := os.WriteFile(d.file(name+unfinished), []byte(text), 0o600); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
		// The task may run as any user.
		if err := os.Chmod(d.file(name+unfinished), 0o644); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
		if err := d.finish(name); err != nil {
			return err
		}
	}
	return d.write(networkFile, Network{Namespace: namespace, ResolvConf: resolvConf != ""})
}

// Network returns the network of the task, or nil.
func (d Dir) Network() (*Network, error) { return readFile[Network](d, networkFile) }

// EtcFiles returns the files that the task sees in place of the node's: the path of each
// by the path that it has there.
func (d Dir) EtcFiles(network *Network) map[string]string {
	files := map[string]string{"/etc/hosts": d.file(hostsFile)}
	if network.ResolvConf {
		files["/etc/resolv.conf"] = d.file(resolvConfFile)
	}
	return files
}

// Run returns what is known of the running command, or nil.
func (d Dir) Run() (*Run, error) { return readFile[Run](d, runFile) }

// SetHealth says what the health check says.
func (d Dir) SetHealth(health Health) error { return d.write(healthFile, health) }

// Health returns what the health check says, or nil if there is none.
func (d Dir) Health() (*Health, error) { return readFile[Health](d, healthFile) }

// Exit returns how the task ended, or nil.
func (d Dir) Exit() (*Exit, error) { return readFile[Exit](d, exitFile) }

// Supervisor returns who the supervisor is, or nil.
func (d Dir) Supervisor() (*proc.Identity, error) {
	return readFile[proc.Identity](d, supervisorFile)
}

// room is the size of run.json and exit.json. What of exit.json does not fit is
// cut off; run.json fits unless control groups are nested very deep.
const room = 4 << 10

// Reserve takes the room that SetRun and SetExit need.
func (d Dir) Reserve() error {
	for _, name := range []string{runFile, exitFile} {
		if err := os.WriteFile(d.file(name+unfinished), bytes.Repeat([]byte{' '}, room), 0o600); err != nil {
			return fmt.Errorf("reserve room for %s: %w", name, err)
		}
	}
	return nil
}

// SetRun says that the command was started, in the room that was reserved if it
// was: the command writes already, and may have filled the disk.
func (d Dir) SetRun(run Run) error { return d.fill(runFile, run) }

// SetExit says how the task ended, in the room that was reserved if it was.
func (d Dir) SetExit(exit Exit) error {
	exit.StartError, exit.Lost = clip(exit.StartError), clip(exit.Lost)
	return d.fill(exitFile, exit)
}

// fill writes a file over the room that was reserved for it.
func (d Dir) fill(name string, content any) error {
	raw, err := json.Marshal(content)
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	// Blanks after the end are nothing to JSON.
	raw = append(raw, bytes.Repeat([]byte{' '}, max(room-len(raw), 0))...)
	file, err := os.OpenFile(d.file(name+unfinished), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	_, err = file.Write(raw)
	if err := errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return d.finish(name)
}

// clip bounds a text. Of what JSON writes, no byte takes more than six.
func clip(text string) string { return strings.ToValidUTF8(text[:min(len(text), room/16)], "") }

// SetSupervisor says who the supervisor is.
func (d Dir) SetSupervisor(id proc.Identity) error { return d.write(supervisorFile, id) }

// Begin says that the command will be started next. It fails if it was said
// before: a task is started once.
func (d Dir) Begin() error {
	file, err := os.OpenFile(d.file(begunFile), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("begin a task: %w", err)
	}
	return file.Close()
}

// Begun tells whether Begin was called.
func (d Dir) Begun() (bool, error) {
	_, err := os.Lstat(d.file(begunFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at a task: %w", err)
	}
	return true, nil
}

// Lock is the lock of a task.
type Lock struct {
	// File is what holds it, to be handed on to a supervisor.
	File *os.File
}

// Lock takes the lock, and returns nil if another has it.
func (d Dir) Lock() (*Lock, error) {
	file, err := d.openLock()
	if err != nil {
		return nil, err
	}
	request := unix.Flock_t{Type: unix.F_WRLCK, Whence: unix.SEEK_SET}
	err = unix.FcntlFlock(file.Fd(), unix.F_OFD_SETLK, &request)
	if err == nil {
		return &Lock{File: file}, nil
	}
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return nil, file.Close()
	}
	return nil, errors.Join(fmt.Errorf("lock a task: %w", err), file.Close())
}

// Release frees the lock. To close the file alone would not do so at once: a
// process that is just being started has a copy of every open file for a moment.
func (l *Lock) Release() error {
	request := unix.Flock_t{Type: unix.F_UNLCK, Whence: unix.SEEK_SET}
	err := unix.FcntlFlock(l.File.Fd(), unix.F_OFD_SETLK, &request)
	if err != nil {
		err = fmt.Errorf("unlock a task: %w", err)
	}
	return errors.Join(err, l.File.Close())
}

// HandedOn leaves the lock to those who have a copy of the file.
func (l *Lock) HandedOn() error { return l.File.Close() }

// Locked reports whether a process holds the lock, without taking it.
func (d Dir) Locked() (bool, error) {
	file, err := d.openLock()
	if err != nil {
		return false, err
	}
	request := unix.Flock_t{Type: unix.F_WRLCK, Whence: unix.SEEK_SET}
	if err := unix.FcntlFlock(file.Fd(), unix.F_OFD_GETLK, &request); err != nil {
		return false, errors.Join(fmt.Errorf("look at a task's lock: %w", err), file.Close())
	}
	return request.Type != unix.F_UNLCK, file.Close()
}

func (d Dir) openLock() (*os.File, error) {
	file, err := os.OpenFile(d.file(lockFile), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("open a task's lock: %w", err)
	}
	return file, nil
}

func (d Dir) file(name string) string { return filepath.Join(string(d), name) }

func (d Dir) write(name string, content any) error {
	raw, err := json.Marshal(content)
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	if err := os.WriteFile(d.file(name+unfinished), raw, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return d.finish(name)
}

// unfinished is what the name of a file ends with that is being written.
const unfinished = ".new"

func (d Dir) finish(name string) error {
	if err := os.Rename(d.file(name+unfinished), d.file(name)); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

func (d Dir) read(name string, into any) (bool, error) {
	raw, err := os.ReadFile(d.file(name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read %s: %w", name, err)
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return false, fmt.Errorf("read %s: %w: %w", d.file(name), ErrDamaged, err)
	}
	return true, nil
}

func readFile[T any](d Dir, name string) (*T, error) {
	into := new(T)
	found, err := d.read(name, into)
	if err != nil || !found {
		return nil, err
	}
	return into, nil
}
