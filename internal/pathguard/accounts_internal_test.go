package pathguard

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestPrivateGroupHasNoOtherMember(t *testing.T) {
	dir := t.TempDir()
	a := accounts{filepath.Join(dir, "passwd"), filepath.Join(dir, "group")}
	if a.private(1000, 1000) {
		t.Error("a group is private without any accounts")
	}
	passwd := "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/:\nbob:x:1001:1001::/:\neve:x:1002:1001::/:\ntom:x:1003:100::/:\nsue:x:1004:1004::/:\nkim:x:1005:1005::/:\n+::::::\n"
	group := "root:x:0:\nann:x:1000:ann\nbob:x:1001:\nusers:x:100:\nsue:x:1004:sue,ann\nstaff:x:1005:\n"
	if err := errors.Join(os.WriteFile(a.passwd, []byte(passwd), 0o600), os.WriteFile(a.group, []byte(group), 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		why         string
		user, group int
		want        bool
	}{
		{"ann alone is in the group ann", 1000, 1000, true},
		{"the group of eve is bob's, too", 1001, 1001, false},
		{"the group is not that of the user", 1000, 1001, false},
		{"the group has another name", 1003, 100, false},
		{"ann is in the group of sue", 1004, 1004, false},
		{"the group has not the name of its user", 1005, 1005, false},
		{"root's group", 0, 0, false},
		{"no such group", 4242, 4242, false},
	} {
		if got := a.private(test.user, test.group); got != test.want {
			t.Errorf("%s: private = %v, want %v", test.why, got, test.want)
		}
	}
}
