package process

import (
	"context"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"time"
)

// dockerTimeout bounds one command of the Docker Engine, on a machine that is busy.
const dockerTimeout = 4 * time.Minute

// Docker runs Docker's command line and returns all that it writes. It does so even if ctx
// has ended, as it has when a test cleans up.
func Docker(ctx context.Context, stdin io.Reader, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), dockerTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Stdin = stdin
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), nil
}
