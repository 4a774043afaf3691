package pathguard

import (
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	testneed "github.com/musterhq/muster/test/kit/need"
)

// The users and groups of the tests. The files belong to ann, whose group is hers
// alone.
const (
	ann     = 64001
	eve     = 64002
	everone = 64003
)

// entry is one entry of an access control list.
type entry struct {
	tag, perm uint16
	id        uint32
}

const unnamed = 0xffffffff

// list makes an access control list of ann's file, with entries beside those that
// every list has. mask bounds them all.
func list(mask uint16, more ...entry) []byte {
	entries := []entry{{0x01, 6, unnamed}}
	for _, tag := range []uint16{tagUser, tagGroupObj, tagGroup} {
		for _, e := range more {
			if e.tag == tag {
				entries = append(entries, e)
			}
		}
		if tag == tagGroupObj && len(more) > 0 && more[0].tag != tagGroupObj {
			entries = append(entries, entry{tagGroupObj, 4, unnamed})
		}
	}
	entries = append(entries, entry{tagMask, mask, unnamed}, entry{0x20, 4, unnamed})
	raw := binary.LittleEndian.AppendUint32(nil, aclVersion)
	for _, e := range entries {
		raw = binary.LittleEndian.AppendUint16(raw, e.tag)
		raw = binary.LittleEndian.AppendUint16(raw, e.perm)
		raw = binary.LittleEndian.AppendUint32(raw, e.id)
	}
	return raw
}

const askFor = "PATHGUARD_TEST_FILE"

// TestMain checks one file as another user if it is asked to.
func TestMain(m *testing.M) {
	if file := os.Getenv(askFor); file != "" {
		dir := filepath.Dir(file)
		system = accounts{filepath.Join(dir, "passwd"), filepath.Join(dir, "group")}
		if err := Check(file); err != nil {
			_, _ = os.Stdout.WriteString(err.Error())
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// openDir makes a directory that other users can look into; they cannot look into
// t.TempDir.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pathguard-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestAccessControlListsAreChecked(t *testing.T) {
	if os.Geteuid() != 0 {
		testneed.Met(t, errors.New("files of another user, which only root can make"))
	}
	for name, test := range map[string]struct {
		list []byte
		want string
	}{
		"another user writes":            {list(6, entry{tagUser, 6, eve}), "user 64002"},
		"another group writes":           {list(6, entry{tagGroup, 6, everone}), "group 64003"},
		"a second user writes":           {list(6, entry{tagUser, 4, eve}, entry{tagUser, 6, everone}), "user 64003"},
		"another user reads":             {list(6, entry{tagUser, 4, eve}), ""},
		"the mask forbids it":            {list(4, entry{tagUser, 6, eve}), ""},
		"root and the user itself write": {list(6, entry{tagUser, 6, 0}, entry{tagUser, 6, ann}), ""},
		"the owner's own group writes":   {list(6, entry{tagGroupObj, 6, unnamed}), ""},
		"the private group, by its name": {list(6, entry{tagGroup, 6, ann}), ""},
	} {
		dir := openDir(t)
		file := filepath.Join(dir, "file")
		if err := errors.Join(
			os.WriteFile(filepath.Join(dir, "passwd"), []byte("ann:x:64001:64001::/:\neve:x:64002:64002::/:\n"), 0o644),
			os.WriteFile(filepath.Join(dir, "group"), []byte("ann:x:64001:\neve:x:64002:\nall:x:64003:ann,eve\n"), 0o644),
			os.WriteFile(file, nil, 0o644), os.Chown(file, ann, ann),
		); err != nil {
			t.Fatal(err)
		}
		if err := unix.Setxattr(file, aclName, test.list, 0); errors.Is(err, unix.ENOTSUP) {
			testneed.Met(t, errors.New("a file system with access control lists"))
		} else if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
		cmd.Env = append(os.Environ(), askFor+"="+file, "GORACE=atexit_sleep_ms=0")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: ann, Gid: ann}}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", name, err, out)
		}
		if got := string(out); (test.want == "") != (got == "") || !strings.Contains(got, test.want) {
			t.Errorf("%s: Check = %q, want %q in it", name, got, test.want)
		}
	}
}

func TestUnknownAccessControlListsAreRefused(t *testing.T) {
	good := list(6, entry{tagUser, 6, eve})
	for name, raw := range map[string][]byte{"empty": {}, "cut": good[:len(good)-1], "another version": append([]byte{3}, good[1:]...)} {
		if _, err := parseACL(raw); !errors.Is(err, errACL) {
			t.Errorf("%s: %v, want %v", name, err, errACL)
		}
	}
}
