package install_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/unit"
)

const (
	platform = runtime.GOARCH
	// standIn makes this test program the stand-in for systemctl.
	standIn = "MUSTER_TEST_SYSTEMCTL"
	// units is where the stand-in keeps process ids, logs and sockets.
	units = "/var/lib/units"
	// dynamic is the user for DynamicUser=.
	dynamic = 61184
	// patience bounds the start and the end of a unit.
	patience = 2 * time.Minute
)

// systemctl does what the page asks of systemctl.
func systemctl(args []string) error {
	verb := args[0]
	args = slices.DeleteFunc(args[1:], func(a string) bool { return strings.HasPrefix(a, "-") })
	if err := os.MkdirAll(units, 0o755); err != nil {
		return err
	}
	for _, name := range args {
		u, err := load(name)
		if err != nil {
			return err
		}
		if verb != "enable" {
			err = u.stop()
		}
		if verb != "stop" && err == nil {
			err = u.start()
		}
		if err != nil {
			return fmt.Errorf("%s %s: %w", verb, name, err)
		}
	}
	return nil
}

// service is a unit.
type service struct {
	name    string
	replace *strings.Replacer
	options []*unit.UnitOption
}

func load(name string) (*service, error) {
	base, instance, template := strings.Cut(name, "@")
	if template {
		base += "@"
	}
	file, err := os.Open(filepath.Join("/etc/systemd/system", base+".service"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	options, err := unit.DeserializeOptions(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", base, err)
	}
	u := &service{name: name, options: options}
	u.replace = strings.NewReplacer("%i", instance, "${CREDENTIALS_DIRECTORY}", u.path("credentials"), "%S", "/var/lib")
	return u, nil
}

func (u *service) path(kind string) string { return filepath.Join(units, u.name+"."+kind) }

// all returns the values of a setting, with what they stand for.
func (u *service) all(setting string) []string {
	var values []string
	for _, o := range u.options {
		if o.Section == "Service" && o.Name == setting {
			values = append(values, u.replace.Replace(o.Value))
		}
	}
	return values
}

func (u *service) one(setting string) string { return strings.Join(u.all(setting), " ") }

// start starts the unit's process, and waits until it is ready if it says so.
func (u *service) start() error {
	user := 0
	switch {
	case u.one("DynamicUser") == "yes":
		user = dynamic
	case u.one("User") == "consul":
		user = dynamic - 1
	}
	if err := u.folders(user); err != nil {
		return err
	}
	env, err := u.environment()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(u.path("log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	argv := strings.Fields(u.one("ExecStart"))
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = env, "/", log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: &syscall.Credential{Uid: uint32(user), Gid: uint32(user)}}
	notify, err := u.listen(cmd)
	if err != nil {
		return err
	}
	if notify != nil {
		defer func() { _ = notify.Close() }()
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	if err := os.WriteFile(u.path("pid"), []byte(strconv.Itoa(cmd.Process.Pid)), 0o600); err != nil {
		return err
	}
	if notify == nil {
		return nil
	}
	ended := make(chan error, 1)
	go func() {
		ended <- cmd.Wait()
		_ = notify.Close()
	}()
	if err := awaitReady(notify); err != nil {
		select {
		case end := <-ended:
			return fmt.Errorf("it has ended: %w", end)
		default:
			return err
		}
	}
	return nil
}

// folders makes what the unit keeps, and gives it its credentials.
func (u *service) folders(user int) error {
	for _, dir := range u.all("StateDirectory") {
		path := filepath.Join("/var/lib", dir)
		if err := errors.Join(os.MkdirAll(path, 0o700), os.Chown(path, user, user)); err != nil {
			return err
		}
	}
	dir := u.path("credentials")
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.Chown(dir, user, user)); err != nil {
		return err
	}
	for _, credential := range u.all("LoadCredential") {
		id, from, _ := strings.Cut(credential, ":")
		secret, err := os.ReadFile(from)
		if err != nil {
			return fmt.Errorf("credential %s: %w", id, err)
		}
		path := filepath.Join(dir, id)
		_ = os.Remove(path)
		if err := errors.Join(os.WriteFile(path, secret, 0o400), os.Chown(path, user, user)); err != nil {
			return err
		}
	}
	return nil
}

// environment is the process's: what the unit says, then what its file says.
func (u *service) environment() ([]string, error) {
	set := map[string]string{"PATH": "/usr/local/bin:/usr/bin:/bin", "CREDENTIALS_DIRECTORY": u.path("credentials")}
	add := func(assignment string) {
		name, value, _ := strings.Cut(assignment, "=")
		set[name] = value
	}
	for _, line := range u.all("Environment") {
		for _, assignment := range strings.Fields(line) {
			add(assignment)
		}
	}
	for _, path := range u.all("EnvironmentFile") {
		file, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		for lines := bufio.NewScanner(file); lines.Scan(); {
			if line := lines.Text(); line != "" && !strings.HasPrefix(line, "#") {
				add(line)
			}
		}
		_ = file.Close()
	}
	for _, name := range strings.Fields(u.one("UnsetEnvironment")) {
		delete(set, name)
	}
	var env []string
	for name, value := range set {
		env = append(env, name+"="+value)
	}
	return env, nil
}

// listen opens the socket on which a unit of Type=notify says how far it is; nil
// for others.
func (u *service) listen(cmd *exec.Cmd) (*net.UnixConn, error) {
	if u.one("Type") != "notify" {
		return nil, nil
	}
	path := u.path("notify")
	_ = os.Remove(path)
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+path)
	return conn, os.Chmod(path, 0o777)
}

// awaitReady waits for the word.
func awaitReady(conn *net.UnixConn) error {
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	buffer := make([]byte, 4096)
	for {
		n, err := conn.Read(buffer)
		if errors.Is(err, io.EOF) {
			continue
		}
		if err != nil {
			return fmt.Errorf("it is not ready: %w", err)
		}
		if strings.Contains(string(buffer[:n]), "READY=1") {
			return nil
		}
	}
}

// stop ends the unit's process in order, and it alone (KillMode=process).
func (u *service) stop() error {
	b, err := os.ReadFile(u.path("pid"))
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(string(b))
	if err != nil {
		return err
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		return err
	}
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if syscall.Kill(pid, 0) != nil {
			return nil
		}
		<-time.After(20 * time.Millisecond)
	}
	return errors.New("it does not end")
}
