package cli

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// keys returns the commands about the keys that secrets and the authority are sealed with.
func (c *CLI) keys() *cobra.Command {
	state := &cobra.Command{
		Use: "status", Short: "Show which key seals and which keys each apid and dispatcher has", Args: cobra.NoArgs,
		RunE: ask(c, api.GetClusterKeys, &musterv1.GetClusterKeysRequest{}, func(resp *musterv1.GetClusterKeysResponse) error {
			c.printKeys(resp.SealedWith, resp.Holders, resp.OtherKeys)
			return nil
		}),
	}
	reseal := &cobra.Command{
		Use: "reseal", Short: "Seal with the first key of --cluster-key-file, so that the others can be removed", Args: cobra.NoArgs,
		Long: `Seal secrets, the authority's key and the join tokens in the store with the first key of apid's --cluster-key-file.

To replace the key without downtime, add a new one as the first line of the file of every apid and every dispatcher, reseal,
and remove the old one from the files. Each reads its file again automatically. Nothing is sealed with a key that one of them lacks.
Earlier backups of the store need the old key.`,
		Example: "  (umask 077; { openssl rand -base64 32; cat cluster.key; } > both.key) && cat both.key > cluster.key && rm both.key\n  muster cluster key reseal",
		RunE: ask(c, api.ResealCluster, &musterv1.ResealClusterRequest{}, func(resp *musterv1.ResealClusterResponse) error {
			c.printKeys(resp.SealedWith, resp.Holders, nil)
			return nil
		}),
	}
	return group("key", "Show and replace the key that seals secrets and the cluster's own authority", state, reseal)
}

// printKeys prints which daemons have which keys, and which keys may go. Sealing are the other
// keys that still seal records, with how many.
func (c *CLI) printKeys(sealed string, holders []*musterv1.KeyHolder, sealing map[string]uint64) {
	c.printf("Sealed with:  %s\n", printable(sealed))
	for _, key := range slices.Sorted(maps.Keys(sealing)) {
		c.printf("  %s still seals %d records; `muster cluster key reseal` changes that\n", printable(key), sealing[key])
	}
	var others []string
	ready := len(holders) > 0 && len(sealing) == 0
	for _, h := range holders {
		keys := strings.Join(h.Keys, " ")
		if h.Problem != "" {
			keys = "not known: " + h.Problem
		}
		if h.Daemon == "dispatcherd" && len(h.Keys) == 0 && h.Problem == "" {
			c.printf("  dispatcherd %s at %s has none\n", printable(h.Instance), printable(h.Address))
			continue
		}
		c.printf("  %s %s at %s has %s\n", printable(cmp.Or(h.Daemon, "apid")), printable(h.Instance), printable(h.Address), printable(keys))
		for _, k := range h.Keys {
			if k != sealed && !slices.Contains(others, k) {
				others = append(others, k)
			}
		}
		ready = ready && len(h.Keys) > 0 && h.Keys[0] == sealed
	}
	switch {
	case len(others) == 0:
	case ready:
		c.printf("These may go from the files now, but for copies of the store from before: %s\n", printable(strings.Join(others, " ")))
	default:
		c.printf("Not all of them have this key first; `muster cluster key reseal` seals with the first one when all of them have it.\n")
	}
}
