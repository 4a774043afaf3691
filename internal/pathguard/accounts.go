package pathguard

import (
	"os"
	"strconv"
	"strings"
)

// accounts are the files that list the users and groups of a machine.
type accounts struct{ passwd, group string }

var system = accounts{"/etc/passwd", "/etc/group"}

// private tells whether a group is the private group of a user, as Debian's OpenSSH does:
// it has the user's name, is the user's own group, and has no other member. Where users
// have such groups the umask is often 002, and what they make can be written to by
// their group. Root's group is no such group: containers give it to other users.
func (a accounts) private(user, group int) bool {
	if user == 0 || group == 0 {
		return false
	}
	users, err := entries(a.passwd)
	if err != nil {
		return false
	}
	groups, err := entries(a.group)
	if err != nil {
		return false
	}
	uid, gid, name := strconv.Itoa(user), strconv.Itoa(group), ""
	for _, u := range users {
		// name:password:uid:gid:...
		switch {
		case len(u) < 4 || u[3] != gid:
		case u[2] != uid:
			return false
		default:
			name = u[0]
		}
	}
	found := false
	for _, g := range groups {
		// name:password:gid:members
		if len(g) < 4 || g[2] != gid {
			continue
		}
		if name == "" || g[0] != name || g[3] != "" && g[3] != name {
			return false
		}
		found = true
	}
	return found
}

// entries returns the fields of each line of a file such as /etc/passwd.
func entries(file string) ([][]string, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var all [][]string
	for line := range strings.Lines(string(content)) {
		all = append(all, strings.Split(strings.TrimSpace(line), ":"))
	}
	return all, nil
}
