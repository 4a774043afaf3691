package store

import (
	"fmt"
	"strconv"
	"strings"
)

// Keys of heads and pages in the kv; see the package comment.

func tablePrefix(prefix string, t TableDef) string { return prefix + "/" + t.Name() + "/" }

func headPrefix(prefix string, t TableDef) string { return tablePrefix(prefix, t) + "h/" }

func headKey(prefix string, t TableDef, shard int) string {
	return headPrefix(prefix, t) + shardName(shard)
}

func pageKey(prefix string, t TableDef, shard int, page uint64) string {
	return tablePrefix(prefix, t) + "p/" + shardName(shard) + "/" + strconv.FormatUint(page, 10)
}

func shardName(shard int) string {
	if shard < 10 {
		return "0" + strconv.Itoa(shard)
	}
	return strconv.Itoa(shard)
}

// parseHeadKey returns the shard of a head from its key without the prefix of heads.
func parseHeadKey(rest string) (int, error) {
	n, err := strconv.Atoi(rest)
	if err != nil || n < 0 || n >= Shards || rest != shardName(n) {
		return 0, fmt.Errorf("%w: no head has key %q", errCorrupt, rest)
	}
	return n, nil
}

// checkName returns an error unless s is valid as a part of a key.
func checkName(what, s string) error {
	if s == "" || strings.ContainsAny(s, "/ \t\r\n") {
		return fmt.Errorf("%s %q: it must not be empty or hold slashes or blanks", what, s)
	}
	return nil
}
