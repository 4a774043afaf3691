package cli

import (
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// A wrong argument is named, and not taken for one too many.
func TestAWrongArgumentIsNamed(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"webd"}, `"webd": want one of apid, workerd`},
		{[]string{"apid", "workerd"}, "wrong number of arguments: 2"},
		{nil, "wrong number of arguments: 0"},
	} {
		cmd := &cobra.Command{
			Use: "health DAEMON", ValidArgs: []string{"apid", "workerd"}, Args: cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
			RunE: func(*cobra.Command, []string) error { return nil }, SilenceErrors: true, SilenceUsage: true,
		}
		RefuseBadUsage(cmd)
		cmd.SetArgs(append([]string{}, test.args...))
		if err := cmd.Execute(); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q: %v", test.args, err)
		}
	}
}
