package pluginhost

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"unicode/utf8"

	"go.uber.org/zap"

	"github.com/musterhq/muster/internal/nodereport"
	"github.com/musterhq/muster/internal/pathguard"
)

// file is a plugin's executable.
type file struct {
	kind *kind
	name string
	path string
	args []string
}

// discover finds plugins in the settings and in the directories. A directory
// that cannot be read has none.
func (h *Host) discover() []file {
	var found []file
	for k, commands := range map[*kind]map[string][]string{executorKind: h.cfg.Commands, networkKind: h.cfg.NetworkCommands} {
		for name, command := range commands {
			found = append(found, file{kind: k, name: name, path: command[0], args: command[1:]})
		}
	}
	for _, dir := range h.cfg.Dirs {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			h.log.Warn("skipping plugin directory", zap.String("directory", dir), zap.Error(err))
		}
		for _, entry := range entries {
			f, ok := executableIn(dir, entry.Name())
			if ok && !slices.ContainsFunc(found, f.same) {
				found = append(found, f)
			}
		}
	}
	return found
}

// executableIn returns the plugin that a directory entry is, if it is one.
func executableIn(dir, entry string) (file, bool) {
	k := executorKind
	name, ok := strings.CutPrefix(entry, Prefix)
	if !ok {
		k = networkKind
		name, ok = strings.CutPrefix(entry, NetworkPrefix)
	}
	if runtime.GOOS == "windows" {
		name = strings.TrimSuffix(name, ".exe")
	}
	if !ok || !validName(name) {
		return file{}, false
	}
	path, err := filepath.Abs(filepath.Join(dir, entry))
	if err != nil {
		return file{}, false
	}
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() || (runtime.GOOS != "windows" && info.Mode()&0o111 == 0) {
		return file{}, false
	}
	return file{kind: k, name: name, path: path}, true
}

// openGuarded opens a program, unless others than root and the worker's own user can
// change or replace it: it would run with the worker's rights.
func openGuarded(path string) (*os.File, error) {
	f, err := pathguard.Open(path)
	var changeable *pathguard.Error
	switch {
	case errors.As(err, &changeable):
		return nil, fmt.Errorf("%s is refused: %w", path, err)
	case err != nil:
		return nil, fmt.Errorf("open plugin: %w", err)
	default:
		return f, nil
	}
}

// validName says whether a plugin can have a name: it becomes the name of a
// directory, and the node reports it.
func validName(name string) bool {
	return name != "" && len(name) <= nodereport.MaxName && utf8.ValidString(name) &&
		!strings.HasPrefix(name, ".") && !strings.ContainsAny(name, "/\\ \t\n")
}

// checksum returns the SHA-256 of a file, in hexadecimal.
func checksum(f io.Reader) (string, error) {
	hash := sha256.New()
	if _, err := io.Copy(hash, f); err != nil {
		return "", fmt.Errorf("read plugin: %w", err)
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}
