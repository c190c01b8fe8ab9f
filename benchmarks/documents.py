# SPDX-License-Identifier: Apache-2.0
"""Are answers found in documents, and is it seen that there are none? Questions over three books about Debian.

    python benchmarks/documents.py FOLDER        debian-faq.txt, debian-policy.txt and debian-reference.txt are in it

A question comes with words that stand in one place of one book: it is answered when the passage with them is among the
five that the search gives. QUESTIONS were written before there was a search, which first found 15 of the 20. It was
then improved by CHOOSING, written for that, in the knowledge of what had been missed; FRESH were written when it was
done, from paragraphs drawn at random. The answer to ELSEWHERE and ELSEWHERE_FRESH stands in none of the books.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from gemmary.serve import documents
from gemmary.serve.documents import Library

FAQ, POLICY, REFERENCE = "debian-faq.txt", "debian-policy.txt", "debian-reference.txt"
BOOKS = (FAQ, POLICY, REFERENCE)
Question = tuple[str, str, str]  # the question, the book, words of the passage that answers it

QUESTIONS = (
    ("How is the name Debian pronounced?", FAQ, "pronounced Deb'-ee-en"),
    ("Which film do the code names of the releases come from?", FAQ, 'characters taken from the "Toy Story" movies'),
    (
        "My wireless card does not work with Linux. Can I use its Windows driver?",
        FAQ,
        "use ndiswrapper to use a driver for Windows",
    ),
    ("How do I unsubscribe from a mailing list?", FAQ, "Be sure to remember to add -request"),
    (
        "Why are a game's data files still there after I removed the game?",
        FAQ,
        "This is necessary to avoid circular dependencies",
    ),
    ("How do I get in touch with the maintainer of a package by mail?", FAQ, "e-mail to xyz@packages.debian.org"),
    ("Which user ids do ordinary user accounts get?", POLICY, "1000-59999:"),
    ("Why is the uid 65535 forbidden?", POLICY, 'sentinel value when "uid_t" was 16 bits'),
    ("What must the first line of a Perl script look like?", POLICY, 'this should be "#!/usr/bin/perl"'),
    (
        "Which character encoding does the changelog of a package have to use?",
        POLICY,
        "entire changelog must be encoded in UTF-8",
    ),
    ("How should I name a package that contains offensive jokes?", POLICY, '"cowsay-offensive"'),
    ("Can I uninstall a package that is marked as essential?", POLICY, "refuse to remove the package (upgrading"),
    ("How do I write a date in a version number so that versions sort correctly?", POLICY, "four-digit year first"),
    ("What does the last number of the Standards-Version mean?", POLICY, "cosmetic, typographical or other edits"),
    ("How can I find out who really uploaded a package?", REFERENCE, "who-uploads(1) in the devscripts package"),
    ("How do I stop my terminal from beeping?", REFERENCE, "set bell-style none"),
    (
        "free says that almost all of my memory is used, should I worry?",
        REFERENCE,
        'Do not worry about the large size of "used"',
    ),
    ("How can I keep the screen saver from switching on?", REFERENCE, "xset -dpms"),
    ("How do I get the files out of an RPM package?", REFERENCE, "rpm2cpio file.src.rpm"),
    (
        "Which IP addresses can I use in my home network without conflicts?",
        REFERENCE,
        "reserved for use on the local area networks (LANs) by rfc1918",
    ),
)
CHOOSING = (
    ("May I delete the .deb files that were downloaded?", FAQ, "e.g. by running aptitude clean"),
    ("Where does aptitude write its log?", FAQ, "that it intends to perform to /var/log/aptitude"),
    ("Is it safe to remove an old kernel?", FAQ, "linux-image-NNN.prerm script checks"),
    ("How do I set the default paper size for all programs?", FAQ, "will be kept in the file /etc/papersize"),
    ("How do I let a user access a device such as the cdrom?", FAQ, "/dev/sr0 belongs to the cdrom group"),
    ("Which port was made for Hitachi processors?", FAQ, "port to Hitachi SuperH processors"),
    ("Does Debian conform to POSIX?", FAQ, "certification costs make it unlikely"),
    ("What was slink named after?", FAQ, "Slinky Dog, the toy dog"),
    ("Where can I watch Flash movies?", FAQ, "gnash and swfdec"),
    ("What is the web forum for Debian users?", FAQ, "Debian User Forums"),
    ("Which field lists the bugs an upload fixes?", POLICY, "the upload governed by the .changes file closes"),
    ("May the homepage field have angle brackets around the address?", POLICY, 'surrounding characters such as "<>"'),
    (
        "Where should configurable settings of an init script be put?",
        POLICY,
        'they should be placed in a file in "/etc/default"',
    ),
    ("Do files in /run survive a reboot?", POLICY, "normally not persistent across a reboot"),
    ("Should a package use the bundled copy of a library?", POLICY, "should not make use of these convenience copies"),
    ("Are symbols files mandatory for C++ libraries?", POLICY, "can be quite onerous"),
    ("What is the user nobody's id?", POLICY, 'User "nobody"'),
    ("Can a script in the PATH have a .sh extension?", POLICY, 'almost certainly start with "set -e"'),
    ("What does Architecture: all mean?", POLICY, 'Specifying only "all" indicates'),
    ("What is debian/files used for?", POLICY, "record which files are being generated"),
    ("How do I find the best MTU?", REFERENCE, "maximum succeeding data packet size"),
    ("What is the MTU for a dial-up connection?", REFERENCE, "Dial-up link"),
    ("How do I convert ext2 to ext3?", REFERENCE, "filesystem conversion from ext2 to ext3"),
    ("How can I test how fast my disk is?", REFERENCE, 'by "hdparm -tT /dev/hda"'),
    ("Which package mounts USB sticks automatically?", REFERENCE, "udisks2 package provides"),
    (
        "Which scripting language should I use for a new program that isn't simple?",
        REFERENCE,
        "Use python3, if the task isn't a simple one",
    ),
    ("How can I check a shell script for syntax errors?", REFERENCE, "dash -n script.sh"),
    ("How do I read a man page in Italian?", REFERENCE, "LANG=it_IT.UTF-8 man programname"),
    ("How do German numbers look with decimals and thousands?", REFERENCE, 'it is displayed as "1.000,1"'),
    (
        "How do I downgrade my system in an emergency?",
        REFERENCE,
        'Run "apt-get update; apt-get dist-upgrade" to force downgrading',
    ),
    ("How can I make a dummy package to satisfy a dependency?", REFERENCE, "may need to use equivs as a last resort"),
    ("How does a named pipe work?", REFERENCE, "named pipe is a file that acts like a pipe"),
    ("Do symbolic links to directories cause loops?", REFERENCE, "symbolic links results in loops"),
    ("How do I extend the life of my SSD?", REFERENCE, "prevent disk wear out"),
    (
        "How do I predict that a hard disk is going to fail?",
        REFERENCE,
        "You can monitor and log your hard disk which is compliant",
    ),
    ("How do I stop a systemd service?", REFERENCE, '"systemctl stop $unit"'),
)
FRESH = (
    (
        "Where are the preinst and postinst scripts of installed packages kept?",
        FAQ,
        "control files can be found in the directory /var/lib/dpkg/info",
    ),
    (
        "Which program stops and restarts daemons when a package is installed?",
        FAQ,
        "start-stop-daemon which is used to start daemons at boot time",
    ),
    (
        "May I ask on the Debian lists when I run another distribution?",
        FAQ,
        "people there may base their suggestions on the assumption",
    ),
    ("Which organizations in Europe take donations for Debian?", FAQ, "the Debian France Association"),
    ("Why were pre-dependencies introduced?", FAQ, "from a.out format to ELF format"),
    ("Where can I get the XML source of this FAQ?", FAQ, "git@salsa.debian.org:ddp-team/debian-faq.git"),
    ("Which mail program is in a standard installation?", FAQ, "send e-mail (with mutt)"),
    (
        "What if a package's configuration before the build is interactive?",
        POLICY,
        "configuration routine modified to become non-interactive",
    ),
    ("Who is the maintainer of an orphaned package?", POLICY, 'set to "Debian QA Group <packages@qa.debian.org>"'),
    (
        "What overrides the symbols files when dependencies are computed?",
        POLICY,
        'exists in the source package, it will override any "symbols" files',
    ),
    (
        "How can I tell from a version number that someone other than the maintainer uploaded it?",
        POLICY,
        "this version of the non-native package was uploaded by someone other",
    ),
    (
        "Do the copyright notices of autotools files have to be in the copyright file?",
        POLICY,
        "such as autotools files, need not be included",
    ),
    ("When does update-fonts-alias have to be called?", POLICY, 'must invoke "update-fonts-alias"'),
    (
        "Are the cron jobs of a package treated as configuration files?",
        POLICY,
        "In general, any script that embeds configuration information is de-facto",
    ),
    (
        "Which part of the binary target builds the packages for one architecture?",
        POLICY,
        '"binary-arch" builds the binary packages which are specific',
    ),
    (
        "What is the difference between a filename and a basename?",
        REFERENCE,
        'people also refers to its basename "us.map.gz"',
    ),
    ("What does umount do?", REFERENCE, "umount(8) detaches it again"),
    (
        "Does Debian ask for free documentation and logos too?",
        REFERENCE,
        "in the widest scope including document, firmware, logo",
    ),
    (
        "How do I rebuild kernel modules that are outside the tree when I upgrade the kernel?",
        REFERENCE,
        "dynamic kernel module support (DKMS) is a new",
    ),
    ("How do I get coloured output from ls?", REFERENCE, 'eval "`dircolors -b`"'),
)
ELSEWHERE = (
    "How long do I have to boil an egg?",
    "What temperature should the oven have to bake bread?",
    "How do I make tomato soup?",
    "What is the best recipe for pizza?",
    "Which spices go into a curry?",
    "What is the capital of Australia?",
    "Who painted the Mona Lisa?",
    "How tall is Mount Everest?",
    "When did the second world war end?",
    "Why is the sky blue?",
    "How do I treat a sunburn?",
    "What causes migraine headaches?",
    "How do I change the tyre of a bicycle?",
    "Who won the football world cup in 2014?",
    "What is the plot of Hamlet?",
    "How do I write a cover letter for a job?",
    "How many calories are in a banana?",
    "What should I wear to a wedding?",
    "How do I grow tomatoes on a balcony?",
    "What is the boiling point of ethanol?",
    "How do I book a flight to Paris?",
    "How often should I water my orchid?",
)
ELSEWHERE_FRESH = (
    "How much flour do I need for pancakes?",
    "How do I cook rice without it sticking to the pot?",
    "How long does a roast chicken stay in the oven?",
    "What can I use instead of butter in a cake?",
    "How do I peel garlic quickly?",
    "Which river flows through Vienna?",
    "Who wrote Pride and Prejudice?",
    "How many moons does Jupiter have?",
    "What helps against a sore throat?",
    "How do I teach my dog to sit?",
    "What is the tax rate for capital gains in Germany?",
    "How do I play the guitar chord F major?",
)


def rank(library: Library, question: Question, limit: int = 5) -> int | None:
    """Where the passage that answers a question stands among those that are found; None where it is not there."""
    asked, book, words = question
    for place, found in enumerate(library.search(asked, limit), 1):
        if Path(found.passage.name).name == book and words in " ".join(found.passage.text.split()):
            return place
    return None


def sweep(library: Library) -> None:
    """What COVERAGE does: how many questions still get passages, and how many that have no answer do."""
    known, answered, elsewhere = documents.COVERAGE, (*QUESTIONS, *CHOOSING, *FRESH), (*ELSEWHERE, *ELSEWHERE_FRESH)
    print("\n| COVERAGE | answered | passages for what stands nowhere |\n|--:|--:|--:|")
    for percent in range(20, 65, 5):
        documents.COVERAGE = percent / 100
        right = sum(rank(library, each) is not None for each in answered)
        wrong = sum(bool(library.search(each)) for each in elsewhere)
        print(f"| {percent / 100:.2f} | {right} of {len(answered)} | {wrong} of {len(elsewhere)} |")
    documents.COVERAGE = known


def table(library: Library) -> None:
    """What was found of each set, and what not."""
    from record import record  # tests read the questions without it

    missed = list[str]()
    rows = []
    for name, questions in (
        ("asked before there was a search", QUESTIONS),
        ("written to choose its settings", CHOOSING),
        ("written afterwards", FRESH),
    ):
        ranks = [rank(library, each) for each in questions]
        found = sum(each is not None for each in ranks)
        rows.append([name, f"{ranks.count(1)} of {len(ranks)}", f"{found} of {len(ranks)}"])
        missed += [asked for (asked, _, _), place in zip(questions, ranks, strict=True) if place is None]
    columns = ("questions", "the passage is first", "is among the five cited")
    record("documents", columns, rows, command="python benchmarks/documents.py FOLDER")
    print("\nnot among five:", *missed, sep="\n    ")
    asked: Sequence[str] = (*ELSEWHERE, *ELSEWHERE_FRESH)
    print("\npassages for what stands nowhere:", *(each for each in asked if library.search(each)), sep="\n    ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    with Library(Path(":memory:")) as library:
        began = time.perf_counter()
        count = sum(library.add(folder / book).documents[0].num_passages for book in BOOKS)
        print(f"{count} passages in {time.perf_counter() - began:.1f} s")
        began = time.perf_counter()
        for asked, _, _ in QUESTIONS:
            library.search(asked)
        print(f"{1e3 * (time.perf_counter() - began) / len(QUESTIONS):.1f} ms a search\n")
        table(library)
        sweep(library)


if __name__ == "__main__":
    main()
