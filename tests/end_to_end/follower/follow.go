// Follow reads a ledger's log over HTTP alone and believes nothing: it uses nothing of modelledger, only the stock
// packages of Go's own checksum database.
//
//	follow URL VKEY STATE [INDEX]
//
// STATE is a file that holds the newest checkpoint that was found sound. The next run proves that the log continues it,
// reads the entries that are new, and proves that the entry INDEX (the newest one when left out) is in the log.
// Exit code 1: something is wrong, and stderr says what.
package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const (
	height  = 8       // of a tile, https://c2sp.org/tlog-tiles
	maxBody = 1 << 25 // bytes of one answer: 256 entries of 65,535 bytes, and more
)

var client = &http.Client{Timeout: 20 * time.Second}

// site is where the files of one log are.
type site string

func (s site) get(path string) []byte {
	answer, err := client.Get(strings.TrimSuffix(string(s), "/") + "/" + path)
	check(err)
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		log.Fatalf("%s: %s", path, answer.Status)
	}
	body, err := io.ReadAll(io.LimitReader(answer.Body, maxBody))
	check(err)
	return body
}

// Height, ReadTiles and SaveTiles make a site a tlog.TileReader.
func (s site) Height() int { return height }

func (s site) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	data := make([][]byte, len(tiles))
	for i, tile := range tiles {
		// Go's own paths name the height too: tile/8/0/000.
		data[i] = s.get(strings.Replace(tile.Path(), "tile/8/", "tile/", 1))
	}
	return data, nil
}

func (s site) SaveTiles([]tlog.Tile, [][]byte) {}

// entries gives those of one bundle in a tree of some size: each is its length in two bytes, and itself.
func (s site) entries(bundle, size int64) [][]byte {
	width := min(1<<height, size-bundle<<height)
	path := strings.Replace(tlog.Tile{H: height, L: -1, N: bundle, W: int(width)}.Path(), "tile/8/data/", "tile/entries/", 1)
	var found [][]byte
	for body := s.get(path); len(body) > 0; {
		if len(body) < 2 || len(body) < 2+int(binary.BigEndian.Uint16(body)) {
			log.Fatalf("%s: ends within an entry", path)
		}
		end := 2 + int(binary.BigEndian.Uint16(body))
		found, body = append(found, body[2:end]), body[end:]
	}
	if int64(len(found)) != width {
		log.Fatalf("%s: has %d entries", path, len(found))
	}
	return found
}

// open gives the tree of a checkpoint that the log has signed.
func open(checkpoint []byte, key note.Verifier) tlog.Tree {
	opened, err := note.Open(checkpoint, note.VerifierList(key))
	check(err)
	lines := strings.Split(opened.Text, "\n")
	if len(lines) < 4 || lines[0] != key.Name() {
		log.Fatalf("not a checkpoint of %s: %q", key.Name(), opened.Text)
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	check(err)
	root, err := tlog.ParseHash(lines[2])
	check(err)
	return tlog.Tree{N: size, Hash: root}
}

func main() {
	log.SetFlags(0)
	if len(os.Args) < 4 {
		log.Fatal("usage: follow URL VKEY STATE [INDEX]")
	}
	ledger, key, state := site(os.Args[1]), verifier(os.Args[2]), os.Args[3]

	checkpoint := ledger.get("checkpoint")
	tree := open(checkpoint, key)
	hashes := tlog.TileHashReader(tree, ledger) // every hash it gives is proven by the tree's own

	var old tlog.Tree
	if known, err := os.ReadFile(state); err == nil {
		old = open(known, key)
		proof, err := tlog.ProveTree(tree.N, old.N, hashes)
		check(err)
		check(tlog.CheckTree(proof, tree.N, tree.Hash, old.N, old.Hash))
	}
	for bundle := old.N >> height; bundle<<height < tree.N; bundle++ {
		entries, indexes := ledger.entries(bundle, tree.N), []int64{}
		for i := range entries {
			indexes = append(indexes, tlog.StoredHashIndex(0, bundle<<height+int64(i)))
		}
		leaves, err := hashes.ReadHashes(indexes)
		check(err)
		for i, entry := range entries {
			if tlog.RecordHash(entry) != leaves[i] {
				log.Fatalf("entry %d is not what its tile says", bundle<<height+int64(i))
			}
		}
	}
	index := tree.N - 1
	if len(os.Args) > 4 {
		asked, err := strconv.ParseInt(os.Args[4], 10, 64)
		check(err)
		index = asked
	}
	if index < 0 || index >= tree.N {
		log.Fatalf("there is no entry %d; the log has %d", index, tree.N)
	}
	entry := ledger.entries(index>>height, tree.N)[index%(1<<height)]
	proof, err := tlog.ProveRecord(tree.N, index, hashes)
	check(err)
	check(tlog.CheckRecord(proof, tree.N, tree.Hash, index, tlog.RecordHash(entry)))

	check(os.WriteFile(state, checkpoint, 0o644))
	fmt.Printf("%d entries follow %d; entry %d is in the log: %s\n", tree.N-old.N, old.N, index, entry)
}

func verifier(vkey string) note.Verifier {
	key, err := note.NewVerifier(vkey)
	check(err)
	return key
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
