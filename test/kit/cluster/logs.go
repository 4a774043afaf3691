package cluster

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// logTail is how much of each process's log is shown.
const logTail = 48 << 10

// Logs returns the ends of the logs of all processes of a cluster in a directory.
func Logs(dir string) string {
	paths, err := filepath.Glob(filepath.Join(dir, "*.log"))
	if err != nil {
		return err.Error()
	}
	servers, err := filepath.Glob(filepath.Join(dir, "*", "consul.log"))
	if err != nil {
		return err.Error()
	}
	paths = append(paths, servers...)
	slices.Sort(paths)
	var all string
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			all += err.Error() + "\n"
		}
		all += fmt.Sprintf("==== %s\n%s\n", strings.TrimPrefix(path, dir+"/"), b[max(0, len(b)-logTail):])
	}
	return all
}
