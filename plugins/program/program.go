// Package program is what the main functions of the executors that ship have in
// common: their version, their log, and where they keep their state.
package program

import (
	"os"
	"path/filepath"
	"runtime/debug"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/musterhq/muster/plugins/sdk"
)

// version is set when a release is built, as that of cmd/muster is.
var version string

// Version is the version of Muster that the program was built from.
func Version() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

// Logger writes to standard error, in the form in which a worker takes a
// plugin's lines over into its own log.
func Logger() *zap.Logger {
	encoding := zapcore.EncoderConfig{
		TimeKey:     "@timestamp",
		LevelKey:    "@level",
		MessageKey:  "@message",
		LineEnding:  zapcore.DefaultLineEnding,
		EncodeLevel: zapcore.LowercaseLevelEncoder,
		EncodeTime:  zapcore.TimeEncoderOfLayout("2006-01-02T15:04:05.000000Z07:00"),
		// Fields are read as they are; a duration as text can be read by people.
		EncodeDuration: zapcore.StringDurationEncoder,
	}
	return zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(encoding), zapcore.Lock(os.Stderr), zapcore.InfoLevel))
}

// StateDir is where the named executor keeps its state: where its worker says,
// else where programs of the system, or of the user, do.
func StateDir(executor string) string {
	fallback := filepath.Join("/var/lib/muster/executors", executor)
	if home, err := os.UserHomeDir(); err == nil && os.Geteuid() != 0 {
		fallback = filepath.Join(home, ".local/state/muster/executors", executor)
	}
	return sdk.StateDir(fallback)
}
