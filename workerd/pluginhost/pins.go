package pluginhost

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"go.uber.org/zap"
)

// pins says which files may be plugins.
type pins struct {
	// named are those of the settings: a plugin that is named must have the sum.
	named map[string]string
	// listed are those of the file of checksums: with such a file, a plugin must
	// be in it. It may be there more than once, as while it is upgraded.
	listed map[string][]string
	strict bool
}

// allow refuses a file that may not be the plugin that pins call by that name.
func (p pins) allow(name, file, sum string) error {
	if pinned := p.named[name]; pinned != "" && !strings.EqualFold(pinned, sum) {
		return fmt.Errorf("%s is refused: its checksum is %s and %s is pinned", file, sum, strings.ToLower(pinned))
	}
	if p.strict && !slices.Contains(p.listed[name], sum) {
		if len(p.listed[name]) == 0 {
			return fmt.Errorf("%s is refused: its checksum is %s and the file of checksums does not name it", file, sum)
		}
		return fmt.Errorf("%s is refused: its checksum is %s and %s is pinned", file, sum, strings.Join(p.listed[name], " or "))
	}
	return nil
}

// readPins reads a file of checksums as sha256sum writes it: a checksum and a
// plugin's file on each line. Lines that are empty or begin with # do not count.
func readPins(content []byte) (map[string][]string, error) {
	listed := map[string][]string{}
	lines := bufio.NewScanner(bytes.NewReader(content))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		sum, file, _ := strings.Cut(line, " ")
		// sha256sum marks a file that it read as binary with a star.
		file = path.Base(strings.TrimPrefix(strings.TrimSpace(file), "*"))
		// A network plugin is called by the name of its file.
		name := strings.TrimPrefix(file, Prefix)
		if !isChecksum(sum) || !validName(name) {
			return nil, fmt.Errorf("line %d is %q; it must be a SHA-256 and the name of a plugin's file", n, line)
		}
		listed[name] = append(listed[name], strings.ToLower(sum))
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	return listed, nil
}

// loadPins returns what is pinned by the settings and by the file of checksums.
func loadPins(cfg Config) (pins, []byte, error) {
	p := pins{named: cfg.Checksums, strict: cfg.ChecksumFile != ""}
	if !p.strict {
		return p, nil, nil
	}
	content, err := os.ReadFile(cfg.ChecksumFile)
	if err != nil {
		return p, nil, fmt.Errorf("plugins: read file of checksums: %w", err)
	}
	if p.listed, err = readPins(content); err != nil {
		return p, nil, fmt.Errorf("plugins: file of checksums %s: %w", cfg.ChecksumFile, err)
	}
	return p, content, nil
}

// reloadPins reads the file of checksums again, and says whether it says
// something new. One that cannot be read or understood changes nothing.
func (h *Host) reloadPins() bool {
	if h.cfg.ChecksumFile == "" {
		return false
	}
	p, content, err := loadPins(h.cfg)
	h.mu.Lock()
	defer h.mu.Unlock()
	if err != nil {
		if !h.pinsFailed {
			h.log.Error("failed to read the plugin checksum file; keeping its former content", zap.Error(err))
		}
		h.pinsFailed = true
		return false
	}
	h.pinsFailed = false
	if bytes.Equal(content, h.pinned) {
		return false
	}
	h.pins, h.pinned = p, content
	h.log.Info("file of plugin checksums has changed", zap.String("file", h.cfg.ChecksumFile))
	return true
}

// currentPins returns what is pinned now.
func (h *Host) currentPins() pins {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.pins
}

// isChecksum says whether a text is a SHA-256 in hexadecimal.
func isChecksum(text string) bool {
	raw, err := hex.DecodeString(text)
	return err == nil && len(raw) == sha256.Size
}
